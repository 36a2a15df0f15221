/* The answers of lib_mlx_server_status(), kept outside Python so that it never waits for Python's lock. */
#ifndef LM_STATUS_TABLE_H
#define LM_STATUS_TABLE_H

#include <stdint.h>

/* Sets the answer for `handle`; NULL removes it. Any thread. */
void lm_status_publish(int64_t handle, const char *json);

/* A copy of the answer, to be released with free(); NULL when there is none. `*known` tells "no such handle"
 * from "out of memory". Any thread. */
char *lm_status_copy(int64_t handle, int *known);

#endif
