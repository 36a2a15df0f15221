/* Brings a libpython and the backend for it into the process. */
#ifndef LM_LOADER_H
#define LM_LOADER_H

#include "backend.h"

enum lm_boot {
    LM_BOOTED,
    LM_BOOT_NOT_FOUND, /* nothing was loaded; trying again later is safe */
    LM_BOOT_BROKEN     /* something was, and it failed */
};

/* Finds and loads; fills `front` but for its `publish`. Needs a large stack. */
enum lm_boot lm_load_backend(struct lm_front *front, const struct lm_backend **backend, struct lm_failure *why);

/* A host that is Python itself may call with its interpreter lock held (ctypes.PyDLL, an extension module):
 * another thread could wait for it for ever. Returns what lm_restore_gil() needs, NULL when it was not held. */
void *lm_release_gil(void);
void lm_restore_gil(void *state);

/* The Python in use, or that would be started, and its MLX; empty when unknown. */
struct lm_versions {
    char python[16];
    char mlx[64];
};

/* Needs a large stack. */
void lm_describe_python(struct lm_versions *versions);

#endif
