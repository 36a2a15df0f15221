/* LIB_MLX_HOME is wrong at first, then set to argv[1]. */
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(argc == 2, "usage: retry HOME");
    expect_error(lib_mlx_load_model("{}"), "python_not_found");
    expect_error(lib_mlx_server_status(1), "python_not_found");
    setenv("LIB_MLX_HOME", argv[1], 1);
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    expect_error(lib_mlx_server_status(1), "invalid_handle");
    return 0;
}
