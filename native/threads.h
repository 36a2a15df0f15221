/* Threads with a stack that we choose: for Python, and for whatever holds several paths on its stack. */
#ifndef LM_THREADS_H
#define LM_THREADS_H

#include <pthread.h>

/* Starts a thread with a stack of our own size and with signals blocked; `id` may be NULL for a detached
 * one. 0, or an errno. */
int lm_spawn(void *(*run)(void *), void *argument, pthread_t *id);

/* Runs it there and waits. 0, or an errno when it could not be run. */
int lm_run_on_large_stack(void *(*run)(void *), void *argument);

#endif
