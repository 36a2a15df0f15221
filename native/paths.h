/* Small path helpers, all on buffers of PATH_MAX. */
#ifndef LM_PATHS_H
#define LM_PATHS_H

#include <limits.h>

/* printf into a path; 0 when it does not fit. */
int lm_path(char out[PATH_MAX], const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The directory part, in place; 0 when there is none left ("/x", "x"). */
int lm_parent(char path[PATH_MAX]);

/* Whether the path exists and can be read. */
int lm_readable(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The first entry of `directory` that begins with `prefix` and ends with `suffix`; 0 when none. */
int lm_find_entry(const char *directory, const char *prefix, const char *suffix, char name[NAME_MAX + 1]);

/* Whether both paths lead to the same file. */
int lm_same_file(const char *a, const char *b);

#endif
