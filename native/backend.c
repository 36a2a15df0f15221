/* _backend_cpXY: runs operations in Python.
 *
 * Host without Python:  host thread -> short-lived call thread -> lm_dispatch(). One thread of ours is parked
 *                       for ever as Python's main thread.
 * Host that is Python:  its interpreter is used, on the caller's own thread; Python knows that thread, and one
 *                       that came and went would hang threading's shutdown. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "backend.h"
#include "interpreter.h"
#include "lm_build.h"
#include "threads.h"

enum { EXIT_WAIT_SECONDS = 3 };

/* build_ffi.py looks for this text in the file to tell whether it is up to date. */
__attribute__((used)) static const char fingerprint[] = LM_FINGERPRINT;

/* ---- calls ---- */

static atomic_int exiting; /* exit() has begun: no new work */

struct call {
    enum lm_operation operation;
    int64_t handle;
    const char *json;
    char *answer;
};

static void *run_call(void *argument)
{
    struct call *call = argument;

    call->answer = lm_dispatch((int)call->operation, call->handle, (char *)call->json);
    return NULL;
}

static char *call_on_thread(struct call *call)
{
    if (lm_run_on_large_stack(run_call, call))
        return lm_error_json("internal", "A thread could not be created for the call.",
                             "The process may have reached its limit of threads or memory.");
    return call->answer;
}

static char *call_python(enum lm_operation operation, int64_t handle, const char *json)
{
    struct call call = {operation, handle, json, NULL};

    if (atomic_load(&exiting))
        return lm_error_json("shutting_down", "The process is exiting.", "");
    if (lm_owns_python)
        return call_on_thread(&call);
    run_call(&call);
    return call.answer;
}

/* ---- exit ---- */

static pthread_mutex_t exit_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t exit_changed = PTHREAD_COND_INITIALIZER;
static int drained; /* guarded by exit_lock */
static pid_t owner; /* the process whose exit counts: not a forked child's */

static void *drain(void *unused)
{
    free(lm_dispatch(LM_EXIT, 0, NULL));
    pthread_mutex_lock(&exit_lock);
    drained = 1;
    pthread_cond_signal(&exit_changed);
    pthread_mutex_unlock(&exit_lock);
    return unused;
}

/* The host calls exit(): generation ends before the destructors of MLX run under it, but the exit is never
 * held up for long, whatever Python is doing. */
static void at_exit(void)
{
    struct timespec until;

    if (owner != getpid() || atomic_exchange(&exiting, 1))
        return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += EXIT_WAIT_SECONDS;
    if (lm_spawn(drain, NULL, NULL))
        return;
    pthread_mutex_lock(&exit_lock);
    while (!drained && !pthread_cond_timedwait(&exit_changed, &exit_lock, &until))
        ;
    pthread_mutex_unlock(&exit_lock);
}

/* Exit handlers run in reverse order: this one must be registered after MLX's own, which a first load brings. */
void lm_model_ready(void)
{
    static atomic_int registered;

    if (lm_owns_python && !atomic_exchange(&registered, 1))
        atexit(at_exit);
}

/* ---- the backend's one export ---- */

static int start(const struct lm_front *front, struct lm_failure *why)
{
    owner = getpid();
    if (lm_start_python(front, why))
        return -1;
    if (lm_owns_python)
        atexit(at_exit); /* for an exit during the first load */
    return 0;
}

lm_backend_fn lib_mlx_backend;

__attribute__((visibility("default"))) const struct lm_backend *lib_mlx_backend(void)
{
    static const struct lm_backend self = {LM_BACKEND_ABI, start, call_python};

    return &self;
}
