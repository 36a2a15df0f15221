/* The smallest host: whatever the first call is, Python starts and answers. argv[1]: the expected code. */
#include "check.h"

int main(int argc, char **argv)
{
    const char *code = argc > 1 ? argv[1] : "invalid_argument";

    expect_error(lib_mlx_load_model("{}"), code);
    if (strncmp(code, "python_", 7))
        return 0;
    /* Without Python every function still answers. */
    expect_error(lib_mlx_start_server(1, NULL), code);
    expect_error(lib_mlx_stop_server(1), code);
    expect_error(lib_mlx_server_status(1), code);
    expect_error(lib_mlx_unload_model(1), code);
    expect_error(lib_mlx_suspend(1), code);
    expect_error(lib_mlx_resume(1), code);
    expect(lib_mlx_version(), "\"version\": \"" LIB_MLX_VERSION "\"");
    return 0;
}
