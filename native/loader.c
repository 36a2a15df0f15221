#include "loader.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "paths.h"
#include "python_home.h"

/* Where this library was loaded from, absolute. */
static char library[PATH_MAX];

/* At load time, because dlopen("./liblib_mlx.so") followed by chdir() would lose the place. The address looked
 * up is that of a static object: an exported function's may be the host program's own PLT entry. */
__attribute__((constructor)) static void remember_path(void)
{
    Dl_info self;
    char cwd[PATH_MAX];

    if (!dladdr(&library, &self) || !self.dli_fname)
        return;
    if (self.dli_fname[0] == '/' || !getcwd(cwd, sizeof cwd))
        lm_path(library, "%s", self.dli_fname);
    else
        lm_path(library, "%s/%s", cwd, self.dli_fname);
}

/* ---- a Python that is in the process already ---- */

/* dlsym() gives object pointers and ISO C has no cast from those to function pointers; POSIX guarantees that
 * copying works. */
#define LOOK_UP(handle, name, pointer)                                                                         \
    do {                                                                                                       \
        void *symbol = dlsym(handle, name);                                                                    \
        memcpy(&(pointer), &symbol, sizeof symbol);                                                            \
    } while (0)

static void soname(char out[64], int minor)
{
#ifdef __APPLE__ /* not run here */
    snprintf(out, 64, "libpython3.%d.dylib", minor);
#else
    snprintf(out, 64, "libpython3.%d.so.1.0", minor);
#endif
}

/* Python's symbols, wherever they are: in the program itself or a global library, or in a libpython that
 * somebody else opened RTLD_LOCAL, which is made global. NULL when there is none. */
static void *loaded_python(void)
{
    char name[64];
    void *handle = RTLD_DEFAULT;

    if (dlsym(RTLD_DEFAULT, "Py_IsInitialized"))
        return dlopen(NULL, RTLD_NOW);
    for (int minor = LM_FIRST_MINOR; minor <= LM_LAST_MINOR; minor++) {
        soname(name, minor);
        handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
        if (handle)
            return handle;
    }
    return NULL;
}

static int is_initialized(void *python)
{
    int (*initialized)(void);

    LOOK_UP(python, "Py_IsInitialized", initialized);
    return initialized && initialized();
}

static int version_of(void *python, struct lm_loaded *loaded)
{
    const char *(*version)(void);
    Dl_info place;
    void *address = dlsym(python, "Py_GetVersion");
    int major = 0;

    LOOK_UP(python, "Py_GetVersion", version);
    if (!version || sscanf(version(), "%d.%d", &major, &loaded->minor) != 2 || major != 3)
        return -1;
    if (dladdr(address, &place) && place.dli_fname)
        lm_path(loaded->path, "%s", place.dli_fname);
    return 0;
}

void *lm_release_gil(void)
{
    void *python = loaded_python();
    int (*holds)(void);
    void *(*save)(void);

    if (!python || !is_initialized(python))
        return NULL;
    LOOK_UP(python, "PyGILState_Check", holds);
    LOOK_UP(python, "PyEval_SaveThread", save);
    return holds && save && holds() ? save() : NULL;
}

void lm_restore_gil(void *state)
{
    void *python = state ? loaded_python() : NULL;
    void (*restore)(void *);

    if (!python)
        return;
    LOOK_UP(python, "PyEval_RestoreThread", restore);
    restore(state);
}

/* ---- loading ---- */

static int mismatch(int minor, struct lm_failure *why)
{
    char versions[64];

    lm_backend_versions(library, versions, sizeof versions);
    return lm_fail(why, "python_mismatch", "Install the lib-mlx built for this Python version.",
                   "This process runs Python 3.%d, but this library was built for %s.", minor, versions);
}

/* The last resort: whichever libpython the dynamic linker knows. */
static int find_by_soname(struct lm_python *found)
{
    struct lm_loaded loaded;
    char name[64], backend[PATH_MAX];
    void *python;

    for (int minor = LM_FIRST_MINOR; minor <= LM_LAST_MINOR; minor++) {
        memset(&loaded, 0, sizeof loaded);
        soname(name, minor);
        if (!lm_find_backend(library, minor, backend) || !(python = dlopen(name, RTLD_NOW | RTLD_GLOBAL)))
            continue;
        if (!version_of(python, &loaded) && !lm_python_around(library, &loaded, found))
            return 0;
        dlclose(python); /* not ours: it must not stand in the way of a later search */
    }
    return -1;
}

/* Chooses a Python to start, given the libpython in the process, if any; loads it. */
static int choose_python(const struct lm_loaded *loaded, struct lm_python *found, struct lm_failure *why)
{
    if (lm_find_python(library, loaded, found, why)) {
        if (getenv("LIB_MLX_HOME") && *getenv("LIB_MLX_HOME"))
            return -1;
        if (loaded->minor ? lm_python_around(library, loaded, found) : find_by_soname(found))
            return -1;
    }
    /* Extension modules do not link libpython: its symbols must be global, or they would not find them after
     * dlopen(RTLD_LOCAL) of this library, the default of Dart, Node and Swift. */
    if (loaded->minor || dlopen(found->libpython, RTLD_NOW | RTLD_GLOBAL))
        return 0;
    return lm_fail(why, "python_not_found", "Check that this file is a library for this machine.",
                   "libpython could not be loaded: %s.", dlerror());
}

static enum lm_boot open_backend(const char *path, const struct lm_backend **backend, struct lm_failure *why)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    lm_backend_fn *describe;

    if (!handle) {
        lm_fail(why, "python_init", "Reinstall lib-mlx.", "The backend could not be loaded: %s.", dlerror());
        return LM_BOOT_NOT_FOUND;
    }
    LOOK_UP(handle, LM_BACKEND_SYMBOL, describe);
    *backend = describe ? describe() : NULL;
    if (*backend && (*backend)->abi == LM_BACKEND_ABI)
        return LM_BOOTED;
    lm_fail(why, "python_init", "Reinstall lib-mlx, or run build_ffi.py.",
            "%s belongs to another version of the library.", path);
    return LM_BOOT_BROKEN;
}

enum lm_boot lm_load_backend(struct lm_front *front, const struct lm_backend **backend, struct lm_failure *why)
{
    static struct lm_python found; /* `front` points into it */
    struct lm_loaded loaded = {0};
    void *python = loaded_python();

    memset(&found, 0, sizeof found);
    if (python)
        version_of(python, &loaded);
    if (python && is_initialized(python)) {
        if (!lm_find_backend(library, loaded.minor, found.backend)) {
            mismatch(loaded.minor, why);
            return LM_BOOT_NOT_FOUND;
        }
    } else if (choose_python(&loaded, &found, why)) {
        return LM_BOOT_NOT_FOUND;
    }
    /* For macOS, which has no -z nodelete: our threads must not lose their code to dlclose(). */
    dlopen(library, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    front->library = library;
    front->executable = found.executable;
    front->home = found.home;
    return open_backend(found.backend, backend, why);
}

/* ---- describing ---- */

void lm_describe_python(struct lm_versions *versions)
{
    struct lm_python found = {0};
    struct lm_loaded loaded = {0};
    struct lm_failure ignored;
    char beside[PATH_MAX];
    void *present = loaded_python();

    if (present)
        version_of(present, &loaded);
    if (lm_find_python(library, &loaded, &found, &ignored))
        found.packages[0] = '\0';
    else
        loaded.minor = found.minor;
    if (loaded.minor)
        snprintf(versions->python, sizeof versions->python, "3.%d", loaded.minor);
    lm_path(beside, "%s", library);
    if (lm_mlx_version(found.packages, versions->mlx, sizeof versions->mlx) && lm_parent(beside) && lm_parent(beside))
        lm_mlx_version(beside, versions->mlx, sizeof versions->mlx);
}
