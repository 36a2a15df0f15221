/* What the front (liblib_mlx, knows no Python) and a backend (_backend_cpXY, built for one Python version)
 * know of each other. Both are built together; LM_BACKEND_ABI catches a stale one. */
#ifndef LM_BACKEND_H
#define LM_BACKEND_H

#include <stdint.h>

#include "answer.h"

/* Changes with the structs and operations below and with lib_mlx/abi.py, which carries the same number. */
#define LM_BACKEND_ABI 1

/* The same numbers stand in lib_mlx/abi.py. lib_mlx_server_status() is no operation: the front answers it. */
enum lm_operation {
    LM_LOAD_MODEL,
    LM_START_SERVER,
    LM_STOP_SERVER,
    LM_UNLOAD_MODEL,
    LM_SUSPEND,
    LM_RESUME,
    LM_SHUTDOWN,
    LM_EXIT
};

/* What the front tells the backend it starts. All of it lives as long as the process. */
struct lm_front {
    const char *library;    /* absolute path of liblib_mlx as it was loaded */
    const char *executable; /* sys.executable; empty when the process already runs Python */
    const char *home;       /* Python prefix; empty in a venv, which says itself where its base is */
    /* Sets, or with NULL removes, the answer of lib_mlx_server_status(handle). Takes no lock of Python's. */
    void (*publish)(int64_t handle, const char *json);
};

struct lm_backend {
    int abi;
    /* Starts Python, or joins the one that runs. Called once; 0, or -1 and `why`. */
    int (*start)(const struct lm_front *front, struct lm_failure *why);
    /* Runs one operation. The answer is the caller's to free(); NULL when out of memory. */
    char *(*call)(enum lm_operation operation, int64_t handle, const char *json);
};

/* The backend's only export. */
typedef const struct lm_backend *lm_backend_fn(void);
#define LM_BACKEND_SYMBOL "lib_mlx_backend"

#endif
