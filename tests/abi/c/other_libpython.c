/* A libpython is in the process already, opened RTLD_LOCAL and not initialised. argv[1]: that libpython. */
#include <dlfcn.h>

#include "check.h"

int main(int argc, char **argv)
{
    void *before, *after;

    CHECK(argc == 2, "usage: other_libpython LIBPYTHON");
    before = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(before, "%s", dlerror());
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    after = dlsym(RTLD_DEFAULT, "Py_GetVersion");
    CHECK(after && after == dlsym(before, "Py_GetVersion"), "a second libpython was loaded");
    return 0;
}
