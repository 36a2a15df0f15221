#include "python_home.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lm_build.h" /* written by build_ffi.py: LM_BUILD_PREFIX, LM_MULTIARCH */
#include "paths.h"

#define SET_HOME "Set LIB_MLX_HOME to a virtual environment or Python prefix that has lib-mlx's packages."

/* One search: what it starts from, what it found, and the first near miss, which explains a failure best. */
struct search {
    const char *library;
    const struct lm_loaded *loaded;
    struct lm_python *found;
    struct lm_failure *why;
    int noted;
    int strict; /* the place was named, not met by chance: its packages are not checked */
};

static int note(struct search *search, const struct lm_failure *near_miss)
{
    if (!search->noted)
        *search->why = *near_miss;
    search->noted = 1;
    return 0;
}

/* ---- beside the library ---- */

int lm_find_backend(const char *library, int minor, char backend[PATH_MAX])
{
    char directory[2][PATH_MAX];

    lm_path(directory[0], "%s", library);
    /* The library may be a symlink (/usr/local/lib, uv's link mode) with nothing beside it. */
    if (!realpath(library, directory[1]))
        directory[1][0] = '\0';
    for (int i = 0; i < 2; i++)
        if (lm_parent(directory[i]) &&
            lm_path(backend, "%s/_backend_cp3%d.so", directory[i], minor) && lm_readable("%s", backend))
            return 1;
    return 0;
}

void lm_backend_versions(const char *library, char *out, unsigned size)
{
    char backend[PATH_MAX];
    size_t used = 0;

    snprintf(out, size, "none");
    for (int minor = LM_FIRST_MINOR; minor <= LM_LAST_MINOR; minor++)
        if (lm_find_backend(library, minor, backend) && used < size)
            used += (size_t)snprintf(out + used, size - used, "%s3.%d", used ? ", " : "", minor);
}

int lm_mlx_version(const char *directory, char *out, unsigned size)
{
    char name[NAME_MAX + 1];

    if (!*directory || !lm_find_entry(directory, "mlx-", ".dist-info", name))
        return -1;
    name[strlen(name) - strlen(".dist-info")] = '\0';
    snprintf(out, size, "%s", name + strlen("mlx-"));
    return 0;
}

/* ---- one candidate ---- */

static int find_libpython(const char *prefix, int minor, char path[PATH_MAX])
{
#ifdef __APPLE__ /* not run here */
    static const char *const places[] = {"%s/Python", "%s/Frameworks/Python.framework/Versions/3.%d/Python",
                                         "%s/lib/libpython3.%d.dylib"};
#else
    static const char *const places[] = {"%s/lib/libpython3.%d.so.1.0", "%s/lib64/libpython3.%d.so.1.0",
                                         "%s/lib/" LM_MULTIARCH "/libpython3.%d.so.1.0"};
#endif
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int length = snprintf(path, PATH_MAX, places[i], prefix, minor);
        if (length < PATH_MAX && lm_readable("%s", path))
            return 1;
    }
    return 0;
}

/* The base prefix of a virtual environment: the parent of `home` (".../bin") in its pyvenv.cfg. */
static int venv_base(const char *directory, char base[PATH_MAX])
{
    char line[PATH_MAX + 16];
    char *value;
    FILE *config;
    int found = 0;

    if (!lm_path(line, "%s/pyvenv.cfg", directory) || !(config = fopen(line, "re")))
        return 0;
    while (!found && fgets(line, sizeof line, config)) {
        value = strchr(line, '=');
        if (!value || strncmp(line, "home", 4) || strspn(line + 4, " \t") != (size_t)(value - line - 4))
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\r\n")] = '\0';
        found = lm_path(base, "%s", value) && lm_parent(base);
    }
    fclose(config);
    return found;
}

/* A Python met by chance on the way up counts only if our packages can be imported from it: /usr/local may
 * well be a Python prefix, but not ours. */
static int has_packages(const struct search *search, const char *packages)
{
    char beside[PATH_MAX], name[NAME_MAX + 1];

    if (search->strict || lm_find_entry(packages, "_cffi_backend", ".so", name))
        return 1;
    return lm_path(beside, "%s", search->library) && lm_parent(beside) && lm_parent(beside) &&
           lm_find_entry(beside, "_cffi_backend", ".so", name);
}

static int no_backend(struct search *search, const char *directory, int minor)
{
    struct lm_failure near_miss;
    char versions[64];

    lm_backend_versions(search->library, versions, sizeof versions);
    lm_fail(&near_miss, "python_mismatch", "Set LIB_MLX_HOME to a Python of a matching version, or build "
            "lib_mlx with this one.", "Python 3.%d was found in %s, but this library was built for %s.", minor,
            directory, versions);
    return note(search, &near_miss);
}

static int no_libpython(struct search *search, const char *directory, int minor)
{
    struct lm_failure near_miss;

    lm_fail(&near_miss, "python_not_found", "Install the package with the shared library (Debian: "
            "libpython3.x), or use a Python built with --enable-shared.",
            "Python 3.%d in %s has no shared libpython.", minor, directory);
    return note(search, &near_miss);
}

/* Fills `found` from a directory known to hold Python 3.minor; 0 when it cannot be used. `base` is the prefix
 * with libpython and the standard library: the directory itself unless that is a venv. */
static int accept_python(struct search *search, const char *directory, const char *base, int minor)
{
    struct lm_python *found = search->found;
    const struct lm_loaded *loaded = search->loaded;

    if (loaded->minor && loaded->minor != minor)
        return 0;
    if (!lm_find_backend(search->library, minor, found->backend))
        return no_backend(search, directory, minor);
    if (!lm_path(found->packages, "%s/lib/python3.%d/site-packages", directory, minor) ||
        !has_packages(search, found->packages))
        return 0;
    if (!find_libpython(base, minor, found->libpython))
        return no_libpython(search, base, minor);
    /* One libpython with the standard library of another is a crash in waiting. */
    if (loaded->minor && !lm_same_file(loaded->path, found->libpython))
        return 0;
    found->minor = minor;
    /* Without an executable Python takes whichever `python3` PATH has. */
    return lm_path(found->executable, "%s/bin/python3.%d", directory, minor) &&
           lm_path(found->home, "%s", strcmp(directory, base) ? base : directory);
}

/* A venv is known by pyvenv.cfg; getpath and site find its base and packages from the executable alone. */
static int probe_venv(struct search *search, const char *directory)
{
    char base[PATH_MAX];

    if (!venv_base(directory, base))
        return 0;
    for (int minor = LM_FIRST_MINOR; minor <= LM_LAST_MINOR; minor++)
        if (lm_readable("%s/bin/python3.%d", directory, minor) && accept_python(search, directory, base, minor)) {
            search->found->home[0] = '\0';
            return 1;
        }
    return 0;
}

/* A prefix is known by its standard library. */
static int probe_prefix(struct search *search, const char *directory)
{
    for (int minor = LM_FIRST_MINOR; minor <= LM_LAST_MINOR; minor++)
        if (lm_readable("%s/lib/python3.%d/os.py", directory, minor) &&
            accept_python(search, directory, directory, minor))
            return 1;
    return 0;
}

static int probe(struct search *search, const char *directory)
{
    return probe_venv(search, directory) || probe_prefix(search, directory);
}

/* ---- the search ---- */

static int probe_above(struct search *search, const char *library)
{
    static const char *const inside[] = {"", "/.venv", "/python", "/Resources/python"};
    char directory[PATH_MAX], candidate[PATH_MAX];

    lm_path(directory, "%s", library);
    while (lm_parent(directory))
        for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
            if (lm_path(candidate, "%s%s", directory, inside[i]) && probe(search, candidate))
                return 1;
    return 0;
}

static int find_named(struct search *search, const char *name)
{
    char directory[PATH_MAX];

    search->strict = 1;
    if (probe(search, realpath(name, directory) ? directory : name))
        return 0;
    if (search->noted)
        return -1;
    return lm_fail(search->why, "python_not_found", "It must be a virtual environment (pyvenv.cfg, bin/python3.x) "
                   "or a Python prefix (lib/python3.x/os.py).", "LIB_MLX_HOME=%s holds no Python.", name);
}

int lm_find_python(const char *library, const struct lm_loaded *loaded, struct lm_python *found,
                   struct lm_failure *why)
{
    struct search search = {.library = library, .loaded = loaded, .found = found, .why = why};
    const char *named = getenv("LIB_MLX_HOME");
    char real[PATH_MAX], versions[64];

    if (named && *named)
        return find_named(&search, named);
    if (probe_above(&search, library) || (realpath(library, real) && probe_above(&search, real)) ||
        probe(&search, LM_BUILD_PREFIX))
        return 0;
    if (search.noted)
        return -1;
    lm_backend_versions(library, versions, sizeof versions);
    return lm_fail(why, "python_not_found", SET_HOME,
                   "No Python with lib-mlx's packages near %s, which has backends for: %s.", library, versions);
}

int lm_python_around(const char *library, const struct lm_loaded *loaded, struct lm_python *found)
{
    struct lm_failure ignored;
    struct search search = {.library = library, .loaded = loaded, .found = found, .why = &ignored};
    char directory[PATH_MAX];

    if (!realpath(loaded->path, directory))
        return -1;
    while (lm_parent(directory))
        if (probe_prefix(&search, directory))
            return 0;
    return -1;
}
