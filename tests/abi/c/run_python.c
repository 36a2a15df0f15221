/* Runs argv[1] in the library's own interpreter, and checks that the environment stays as it was. */
#include <dlfcn.h>

#include "check.h"

extern char **environ;

static void *symbol(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);

    CHECK(found, "no %s: libpython is not global", name);
    return found;
}

int main(int argc, char **argv)
{
    int (*ensure)(void), (*run)(const char *);
    void (*release)(int);
    void *symbols[] = {NULL, NULL, NULL};
    char **before = environ;

    CHECK(argc == 2, "usage: run_python CODE");
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    symbols[0] = symbol("PyGILState_Ensure");
    symbols[1] = symbol("PyRun_SimpleString");
    symbols[2] = symbol("PyGILState_Release");
    memcpy(&ensure, &symbols[0], sizeof ensure);
    memcpy(&run, &symbols[1], sizeof run);
    memcpy(&release, &symbols[2], sizeof release);
    int gil = ensure();
    CHECK(!run(argv[1]), "the code failed");
    release(gil);
    CHECK(environ == before && getenv("PATH") && !getenv("LIB_MLX_PROBE"), "the environment changed");
    return 0;
}
