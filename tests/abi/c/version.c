/* lib_mlx_version() and lib_mlx_shutdown() start no Python. Prints the version's answer. */
#include <dlfcn.h>

#include "check.h"

int main(void)
{
    char *answer = lib_mlx_version();

    CHECK(answer, "NULL");
    puts(answer);
    lib_mlx_free(answer);
    expect_ok(lib_mlx_shutdown());
    expect_error(lib_mlx_server_status(1), "invalid_handle");
    CHECK(!dlsym(RTLD_DEFAULT, "Py_IsInitialized"), "a libpython was loaded");
    return 0;
}
