/* Threads that Python code runs on. */
#ifndef LM_THREADS_H
#define LM_THREADS_H

#include <pthread.h>

/* Starts a thread with a stack of our own size and with signals blocked; `id` may be NULL for a detached
 * one. 0, or an errno. */
int lm_spawn(void *(*run)(void *), void *argument, pthread_t *id);

#endif
