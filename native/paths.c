#include "paths.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int format_path(char out[PATH_MAX], const char *format, va_list arguments)
{
    int length = vsnprintf(out, PATH_MAX, format, arguments);

    if (length >= 0 && length < PATH_MAX)
        return 1;
    out[0] = '\0';
    return 0;
}

int lm_path(char out[PATH_MAX], const char *format, ...)
{
    va_list arguments;
    int fits;

    va_start(arguments, format);
    fits = format_path(out, format, arguments);
    va_end(arguments);
    return fits;
}

int lm_parent(char path[PATH_MAX])
{
    char *slash = strrchr(path, '/');

    if (!slash || slash == path)
        return 0;
    *slash = '\0';
    return 1;
}

int lm_readable(const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    int fits;

    va_start(arguments, format);
    fits = format_path(path, format, arguments);
    va_end(arguments);
    return fits && access(path, R_OK) == 0;
}

static int matches(const char *name, const char *prefix, const char *suffix)
{
    size_t length = strlen(name), before = strlen(prefix), after = strlen(suffix);

    return length >= before + after && !strncmp(name, prefix, before) && !strcmp(name + length - after, suffix);
}

int lm_find_entry(const char *directory, const char *prefix, const char *suffix, char name[NAME_MAX + 1])
{
    DIR *entries = opendir(directory);
    struct dirent *entry = NULL;

    if (!entries)
        return 0;
    while ((entry = readdir(entries)) && !matches(entry->d_name, prefix, suffix))
        ;
    if (entry)
        snprintf(name, NAME_MAX + 1, "%s", entry->d_name);
    closedir(entries);
    return entry != NULL;
}

int lm_same_file(const char *a, const char *b)
{
    struct stat first, second;

    return !stat(a, &first) && !stat(b, &second) && first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}
