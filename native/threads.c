#include "threads.h"

#include <signal.h>
#include <stddef.h>

/* Hosts call from threads as small as 64 KiB (musl: 128 KiB, macOS: 512 KiB); parsing nested JSON needs more. */
enum { STACK_BYTES = 16 << 20 };

/* No signal of the host's is delivered on our threads. SIGPIPE above all: a client that went away would kill
 * the host. Left alone: those that crash reporters and profilers need, and SIGCHLD, which if blocked here
 * would interrupt the host's system calls instead. */
static void block_signals(sigset_t *previous)
{
    static const int kept[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF, SIGCHLD};
    sigset_t blocked;

    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        sigdelset(&blocked, kept[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, previous);
}

int lm_spawn(void *(*run)(void *), void *argument, pthread_t *id)
{
    pthread_attr_t attributes;
    pthread_t unused;
    sigset_t previous;
    int error;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, id ? PTHREAD_CREATE_JOINABLE : PTHREAD_CREATE_DETACHED);
    block_signals(&previous); /* a new thread inherits the mask, and so do the threads that Python starts */
    error = pthread_create(id ? id : &unused, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

int lm_run_on_large_stack(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    int error = lm_spawn(run, argument, &thread);

    return error ? error : pthread_join(thread, NULL);
}
