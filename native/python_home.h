/* Which Python to start: a search of the file system alone, nothing is loaded. */
#ifndef LM_PYTHON_HOME_H
#define LM_PYTHON_HOME_H

#include <limits.h>

#include "answer.h"

/* Python 3.FIRST .. 3.LAST are looked for; which of them count is decided by the backends that exist. */
enum { LM_FIRST_MINOR = 11, LM_LAST_MINOR = 19 };

struct lm_python {
    int minor;                 /* of 3.minor */
    char backend[PATH_MAX];    /* _backend_cp3NN beside liblib_mlx */
    char libpython[PATH_MAX];
    char executable[PATH_MAX];
    char home[PATH_MAX];       /* empty in a venv */
    char packages[PATH_MAX];   /* its site-packages */
};

/* A libpython that is in the process already, but not initialised; only its own prefix fits it. */
struct lm_loaded {
    int minor; /* 0: there is none */
    char path[PATH_MAX];
};

/* Finds the backend for Python 3.minor beside `library` (as given, then behind its symlinks). */
int lm_find_backend(const char *library, int minor, char backend[PATH_MAX]);

/* LIB_MLX_HOME; else a Python in or beside a directory above `library`; else the one recorded at build time.
 * 0, or -1 and `why`. */
int lm_find_python(const char *library, const struct lm_loaded *loaded, struct lm_python *found,
                   struct lm_failure *why);

/* The Python that a libpython at a known path belongs to, if it has our packages. 0, or -1. */
int lm_python_around(const char *library, const struct lm_loaded *loaded, struct lm_python *found);

/* "3.11" style list of the versions that have a backend, for messages. */
void lm_backend_versions(const char *library, char *out, unsigned size);

/* Version of the MLX installed in `directory` (a site-packages), from its metadata's name. 0, or -1. */
int lm_mlx_version(const char *directory, char *out, unsigned size);

#endif
