/* liblib_mlx: the functions of lib_mlx.h. It links no libpython, so that it loads everywhere and one binary
 * serves every Python version: the first call that needs Python finds and loads one, then the backend built
 * for its version, and hands the call over. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "answer.h"
#include "backend.h"
#include "lib_mlx.h"
#include "lm_build.h"
#include "loader.h"
#include "python_home.h"
#include "status_table.h"
#include "threads.h"

#define FORK_HINT "Start a new program in the child (exec, posix_spawn), or load lib_mlx there only."

/* build_ffi.py looks for this text in the file to tell whether it is up to date. */
__attribute__((used)) static const char fingerprint[] = LM_FINGERPRINT;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows; held for moments only */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static enum { NEW, BOOTING, READY, FAILED } state;
static const struct lm_backend *backend;
static struct lm_failure failure; /* why FAILED */

static _Atomic pid_t owner; /* the process that made the first call; 0 before it */

/* ---- starting ---- */

struct boot {
    enum lm_boot outcome;
    const struct lm_backend *backend;
    struct lm_front front;
    struct lm_failure why;
};

static void *load_backend(void *argument)
{
    struct boot *boot = argument;

    boot->outcome = lm_load_backend(&boot->front, &boot->backend, &boot->why);
    return NULL;
}

/* One at a time; the backend keeps a pointer to the front. */
static struct boot *run_boot(void)
{
    static struct boot boot;

    memset(&boot, 0, sizeof boot);
    boot.front.publish = lm_status_publish;
    if (lm_run_on_large_stack(load_backend, &boot)) {
        lm_fail(&boot.why, "internal", "", "A thread could not be created.");
        boot.outcome = LM_BOOT_NOT_FOUND;
    }
    /* In a Python host this must be the caller's own thread. */
    if (boot.outcome == LM_BOOTED && boot.backend->start(&boot.front, &boot.why))
        boot.outcome = LM_BOOT_BROKEN;
    return &boot;
}

/* Boots unless that is done; called without the lock and, in a Python host, without Python's. */
static void ensure_booted(void)
{
    const struct boot *boot;

    pthread_mutex_lock(&lock);
    while (state == BOOTING)
        pthread_cond_wait(&changed, &lock);
    /* A search that found nothing is cheap and may be repeated; a Python that failed to start may not. */
    if (state == READY || (state == FAILED && backend)) {
        pthread_mutex_unlock(&lock);
        return;
    }
    state = BOOTING;
    atomic_store(&owner, getpid());
    pthread_mutex_unlock(&lock);

    boot = run_boot();

    pthread_mutex_lock(&lock);
    state = boot->outcome == LM_BOOTED ? READY : FAILED;
    backend = boot->outcome == LM_BOOT_NOT_FOUND ? NULL : boot->backend;
    failure = boot->why;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static const struct lm_backend *ready_backend(struct lm_failure *why)
{
    const struct lm_backend *ready;

    pthread_mutex_lock(&lock);
    ready = state == READY ? backend : NULL;
    *why = failure;
    pthread_mutex_unlock(&lock);
    return ready;
}

/* ---- calling ---- */

/* In a child made by fork() our locks and threads are in an unknown state: nothing may be touched. */
static int forked(void)
{
    pid_t first = atomic_load(&owner);

    return first && first != getpid();
}

static char *forked_json(void)
{
    return lm_error_json("forked", "lib_mlx cannot be used in a child made by fork().", FORK_HINT);
}

static char *forward(enum lm_operation operation, int64_t handle, const char *json)
{
    const struct lm_backend *ready;
    struct lm_failure why;
    char *answer;
    void *gil;
    int cancel;

    if (forked())
        return forked_json();
    /* A thread that pthread_cancel() ends inside would take locks with it. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    ready = ready_backend(&why);
    if (!ready) {
        gil = lm_release_gil();
        ensure_booted();
        lm_restore_gil(gil);
        ready = ready_backend(&why);
    }
    answer = ready ? ready->call(operation, handle, json) : lm_failure_json(&why);
    pthread_setcancelstate(cancel, &cancel);
    return answer;
}

char *lib_mlx_load_model(const char *config_json)
{
    return forward(LM_LOAD_MODEL, 0, config_json);
}

char *lib_mlx_start_server(int64_t handle, const char *config_json)
{
    return forward(LM_START_SERVER, handle, config_json);
}

char *lib_mlx_stop_server(int64_t handle)
{
    return forward(LM_STOP_SERVER, handle, NULL);
}

char *lib_mlx_unload_model(int64_t handle)
{
    return forward(LM_UNLOAD_MODEL, handle, NULL);
}

char *lib_mlx_suspend(int64_t handle)
{
    return forward(LM_SUSPEND, handle, NULL);
}

char *lib_mlx_resume(int64_t handle)
{
    return forward(LM_RESUME, handle, NULL);
}

/* Nothing was ever started: nothing is to be shut down, and Python is not started for it. */
static int idle(void)
{
    int is_idle;

    pthread_mutex_lock(&lock);
    is_idle = state == NEW || (state == FAILED && !backend);
    pthread_mutex_unlock(&lock);
    return is_idle;
}

char *lib_mlx_shutdown(void)
{
    if (forked())
        return forked_json();
    return idle() ? strdup("{\"ok\": true}") : forward(LM_SHUTDOWN, 0, NULL);
}

/* ---- answers that need no Python ---- */

static char *unknown_handle(int64_t handle)
{
    char message[96];
    struct lm_failure why;
    int is_failed;

    pthread_mutex_lock(&lock);
    is_failed = state == FAILED;
    why = failure;
    pthread_mutex_unlock(&lock);
    if (is_failed)
        return lm_failure_json(&why);
    snprintf(message, sizeof message, "No model is loaded under handle %lld.", (long long)handle);
    return lm_error_json("invalid_handle", message, "Handles come from lib_mlx_load_model().");
}

char *lib_mlx_server_status(int64_t handle)
{
    char *answer;
    int known;

    if (forked())
        return forked_json();
    answer = lm_status_copy(handle, &known);
    return known ? answer : unknown_handle(handle);
}

static void *describe(void *versions)
{
    lm_describe_python(versions);
    return NULL;
}

/* `"value"`, or null. */
static const char *quoted(char *out, size_t size, const char *value)
{
    snprintf(out, size, *value ? "\"%s\"" : "null", value);
    return out;
}

char *lib_mlx_version(void)
{
    struct lm_versions found = {0};
    char python[32], mlx[80], answer[256];

    /* Without a thread both stay unknown, and a forked child must start none. */
    if (!forked())
        lm_run_on_large_stack(describe, &found);
    snprintf(answer, sizeof answer,
             "{\"ok\": true, \"version\": \"" LIB_MLX_VERSION "\", \"abi_version\": %d, \"python_version\": %s, "
             "\"mlx_version\": %s}", LIB_MLX_ABI_VERSION, quoted(python, sizeof python, found.python),
             quoted(mlx, sizeof mlx, found.mlx));
    return strdup(answer);
}

void lib_mlx_free(void *ptr)
{
    free(ptr);
}
