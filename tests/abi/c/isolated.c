/* The child process of an isolated model is killed in mid-stream: the host goes on, is told, and loads again.
 * argv[1]: a model; argv[2], if given: stay, serving, until killed. */
#include "check.h"

#include <signal.h>

#define ISOLATED "\"isolation\": \"process\","

static void await_status(int64_t handle, const char *needle)
{
    double until = seconds() + 10;
    char *status = lib_mlx_server_status(handle);

    while (!strstr(status, needle)) {
        CHECK(seconds() < until, "no %s in %s", needle, status);
        lib_mlx_free(status);
        usleep(10000);
        status = lib_mlx_server_status(handle);
    }
    lib_mlx_free(status);
}

/* The whole answer to a GET. */
static char *get(int port, const char *path)
{
    static char answer[65536];
    int client = send_request(port, "GET", path, "");
    size_t used = 0;
    ssize_t count;

    while ((count = read(client, answer + used, sizeof answer - used - 1)) > 0)
        used += (size_t)count;
    answer[used] = '\0';
    close(client);
    return answer;
}

int main(int argc, char **argv)
{
    char rest[4096], *pid;
    int64_t handle;
    int port, client;

    CHECK(argc >= 2, "usage: isolated MODEL [stay]");
    handle = load_with(argv[1], ISOLATED);
    port = start(handle);
    client = begin_stream(port, "loop");
    if (argc > 2)
        pause();
    pid = strstr(get(port, "/v1/status"), "\"pid\":");
    CHECK(pid && atoi(pid + 6) > 1 && atoi(pid + 6) != getpid(), "no process of its own");
    kill(atoi(pid + 6), SIGSEGV);
    while (read(client, rest, sizeof rest) > 0)
        ;
    close(client);
    await_status(handle, "\"code\": \"engine_died\"");
    CHECK(strstr(get(port, "/health"), "\"status\":\"failed\""), "the server's address does not tell");
    expect_error(lib_mlx_suspend(handle), "engine_died");
    expect_ok(lib_mlx_stop_server(handle));
    expect(lib_mlx_unload_model(handle), "\"status\": \"unloaded\"");
    handle = load_with(argv[1], ISOLATED);
    CHECK(strstr(get(start(handle), "/health"), "\"status\":\"ok\""), "it cannot be loaded again");
    expect_ok(lib_mlx_shutdown());
    return 0;
}
