#include "status_table.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    int64_t handle;
    char *json;
    struct entry *next;
};

/* A list: a process has a handful of models. The mutex is held for a few pointer moves and one copy, never
 * while waiting for anything else. */
static struct entry *entries;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct entry **find(int64_t handle)
{
    struct entry **link = &entries;

    while (*link && (*link)->handle != handle)
        link = &(*link)->next;
    return link;
}

static void release(struct entry *entry)
{
    if (!entry)
        return;
    free(entry->json);
    free(entry);
}

static struct entry *new_entry(int64_t handle, const char *json)
{
    struct entry *entry = calloc(1, sizeof *entry);

    if (!entry)
        return NULL;
    entry->handle = handle;
    entry->json = strdup(json);
    if (entry->json)
        return entry;
    free(entry);
    return NULL;
}

void lm_status_publish(int64_t handle, const char *json)
{
    struct entry *fresh = json ? new_entry(handle, json) : NULL;
    struct entry *stale;
    struct entry **link;

    if (json && !fresh)
        return; /* out of memory: the previous answer stays */
    pthread_mutex_lock(&lock);
    link = find(handle);
    stale = *link;
    if (fresh) {
        fresh->next = stale ? stale->next : NULL;
        *link = fresh;
    } else if (stale) {
        *link = stale->next;
    }
    pthread_mutex_unlock(&lock);
    release(stale);
}

char *lm_status_copy(int64_t handle, int *known)
{
    struct entry *entry;
    char *copy;

    pthread_mutex_lock(&lock);
    entry = *find(handle);
    copy = entry ? strdup(entry->json) : NULL;
    pthread_mutex_unlock(&lock);
    *known = entry != NULL;
    return copy;
}
