/* Starting a Python of our own, or joining the host's. */
#ifndef LM_INTERPRETER_H
#define LM_INTERPRETER_H

#include "backend.h"

/* Whether the interpreter is ours. In a process that ran Python already it is not. */
extern int lm_owns_python;

/* What attach.py reads and calls through cffi. */
extern const int lm_backend_abi;
extern const char *lm_library;
void lm_publish(int64_t handle, const char *json);
void lm_model_ready(void);
void lm_attach_failed(const char *message);

/* Makes Python ready for lm_dispatch(). 0, or -1 and `why`. */
int lm_start_python(const struct lm_front *front, struct lm_failure *why);

/* ---- in attach.c, the unit that cffi generates ---- */

/* Runs attach.py once; 0 on success. */
int lm_attach_python(void);

/* abi.dispatch(); defined in attach.py. The answer is malloc()ed; NULL when out of memory. */
char *lm_dispatch(int operation, int64_t handle, char *json);

#endif
