#include <Python.h>

#include "interpreter.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "threads.h"

#define REINSTALL "Reinstall lib-mlx into that Python, or set LIB_MLX_HOME to another."

int lm_owns_python;
const int lm_backend_abi = LM_BACKEND_ABI;
const char *lm_library;

static const struct lm_front *front;
static char attach_error[1024];

void lm_publish(int64_t handle, const char *json)
{
    front->publish(handle, json);
}

void lm_attach_failed(const char *message)
{
    snprintf(attach_error, sizeof attach_error, "%s", message);
}

/* ---- an interpreter of our own ---- */

static int init_failed(const PyStatus *status, struct lm_failure *why)
{
    return lm_fail(why, "python_init", REINSTALL, "Python in %s could not start: %s.",
                   *front->home ? front->home : front->executable,
                   status->err_msg ? status->err_msg : "it asked to exit");
}

/* Isolated: ignores the environment (PYTHONHOME=/x would end the host), leaves the locale alone, installs no
 * signal handlers. UTF-8 mode: paths are UTF-8 even under LANG=C. */
static int preinitialize(struct lm_failure *why)
{
    PyPreConfig config;
    PyStatus status;

    PyPreConfig_InitIsolatedConfig(&config);
    config.utf8_mode = 1;
    status = Py_PreInitialize(&config);
    return PyStatus_Exception(status) ? init_failed(&status, why) : 0;
}

static PyStatus configure(PyConfig *config)
{
    PyStatus status;

    PyConfig_InitIsolatedConfig(config);
    /* Without .pyc files a load takes twice as long; but writing any into a signed app breaks its signature. */
    config->write_bytecode = !strstr(front->library, ".app/");
    status = PyConfig_SetBytesString(config, &config->program_name, front->executable);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(config, &config->executable, front->executable);
    if (!PyStatus_Exception(status) && *front->home)
        status = PyConfig_SetBytesString(config, &config->home, front->home);
    return status;
}

static int initialize(struct lm_failure *why)
{
    PyConfig config;
    PyStatus status;

    if (preinitialize(why))
        return -1;
    status = configure(&config);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        return init_failed(&status, why);
    PyEval_SaveThread();
    return 0;
}

/* ---- attaching to an interpreter, ours or the host's ---- */

static int import_failed(const char *module, struct lm_failure *why)
{
    PyObject *type, *value, *traceback, *text;
    const char *utf8;

    PyErr_Fetch(&type, &value, &traceback);
    text = PyUnicode_FromFormat("%S (Python in %S)", value ? value : Py_None, PySys_GetObject("prefix"));
    utf8 = text ? PyUnicode_AsUTF8(text) : NULL;
    lm_fail(why, "python_init", REINSTALL, "%s.", utf8 ? utf8 : module);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    PyErr_Clear();
    return -1;
}

/* Whoever imports `threading` first is its main thread for ever, and `signal` takes over SIGINT whatever
 * PyConfig says: both happen here, on a thread that never ends and with the handlers saved. */
static int import_early(struct lm_failure *why)
{
    static const char *const modules[] = {"signal", "threading", "_cffi_backend"};
    PyGILState_STATE gil = PyGILState_Ensure();
    int result = 0;

    /* cffi on Python < 3.12 takes this type's version tag for a lock and would spin on it for ever. */
    PyType_Modified(&PyCapsule_Type);
    for (size_t i = 0; !result && i < sizeof modules / sizeof *modules; i++) {
        PyObject *module = PyImport_ImportModule(modules[i]);
        result = module ? 0 : import_failed(modules[i], why);
        Py_XDECREF(module);
    }
    PyGILState_Release(gil);
    return result;
}

static int attach(struct lm_failure *why)
{
    if (import_early(why))
        return -1;
    if (lm_attach_python())
        return lm_fail(why, "python_init", REINSTALL, "cffi could not attach to Python.");
    if (*attach_error)
        return lm_fail(why, "python_init", REINSTALL, "%s.", attach_error);
    return 0;
}

/* ---- the host's signal handlers ---- */

#ifndef NSIG
#define NSIG 65
#endif

static void save_handlers(struct sigaction saved[NSIG])
{
    for (int number = 1; number < NSIG; number++)
        sigaction(number, NULL, &saved[number]);
}

static void restore_handlers(const struct sigaction saved[NSIG])
{
    struct sigaction now;

    for (int number = 1; number < NSIG; number++)
        if (!sigaction(number, NULL, &now) && now.sa_handler != saved[number].sa_handler)
            sigaction(number, &saved[number], NULL);
}

/* ---- starting ---- */

/* What the parked thread does before it parks, and where it reports to. */
struct start {
    struct lm_failure *why;
    int result;
    int done;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* This is threading.main_thread(): it never ends, so that its id is never another thread's. */
static void *python_main(void *argument)
{
    struct start *start = argument;
    struct sigaction saved[NSIG];
    int result;

    save_handlers(saved);
    result = initialize(start->why) || attach(start->why) ? -1 : 0;
    restore_handlers(saved);
    pthread_mutex_lock(&start->lock);
    start->result = result;
    start->done = 1;
    pthread_cond_signal(&start->changed);
    pthread_mutex_unlock(&start->lock);
    for (;;)
        pause();
    return NULL;
}

static int start_own(struct lm_failure *why)
{
    /* Static: the parked thread may still be inside pthread_mutex_unlock() when this function has returned. */
    static struct start start = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

    start.why = why;
    if (lm_spawn(python_main, &start, NULL))
        return lm_fail(why, "internal", "", "A thread for Python could not be created.");
    pthread_mutex_lock(&start.lock);
    while (!start.done)
        pthread_cond_wait(&start.changed, &start.lock);
    pthread_mutex_unlock(&start.lock);
    return start.result;
}

int lm_start_python(const struct lm_front *started_by, struct lm_failure *why)
{
    front = started_by;
    lm_library = front->library;
    lm_owns_python = !Py_IsInitialized();
    return lm_owns_python ? start_own(why) : attach(why);
}
