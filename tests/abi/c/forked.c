/* A child made by fork() gets an error at once from every function, and may exit. */
#include <sys/wait.h>

#include "check.h"

static void in_child(void)
{
    alarm(5);
    expect_error(lib_mlx_load_model("{}"), "forked");
    expect_error(lib_mlx_start_server(1, NULL), "forked");
    expect_error(lib_mlx_stop_server(1), "forked");
    expect_error(lib_mlx_server_status(1), "forked");
    expect_error(lib_mlx_unload_model(1), "forked");
    expect_error(lib_mlx_suspend(1), "forked");
    expect_error(lib_mlx_resume(1), "forked");
    expect_error(lib_mlx_shutdown(), "forked");
    expect(lib_mlx_version(), "\"ok\": true");
    exit(42);
}

int main(int argc, char **argv)
{
    pid_t child;
    int status;

    if (argc > 1)
        start(load(argv[1]));
    else
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    child = fork();
    if (!child)
        in_child();
    CHECK(waitpid(child, &status, 0) == child, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42, "the child ended with status %d", status);
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    return 0;
}
