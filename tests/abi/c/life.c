/* The life of a model through every function, with the answers the header promises. argv[1]: a model;
 * argv[2]: more of the configuration, if given. */
#include "check.h"

int main(int argc, char **argv)
{
    const char *keys = argc > 2 ? argv[2] : "";
    char config[4096];
    int64_t handle;
    int port;

    CHECK(argc >= 2, "usage: life MODEL [KEYS]");
    handle = load_with(argv[1], keys);
    CHECK(handle > 0, "handle");
    expect(lib_mlx_server_status(handle), "\"server\": {\"status\": \"stopped\"");
    port = start(handle);
    CHECK(port == start(handle), "a second start must describe the running server");
    snprintf(config, sizeof config, "\"port\": %d", port);
    expect(lib_mlx_server_status(handle), config);
    expect(lib_mlx_suspend(handle), "\"status\": \"suspended\"");
    expect(lib_mlx_server_status(handle), "\"status\": \"suspended\"");
    expect(lib_mlx_suspend(handle), "\"status\": \"suspended\"");
    expect(lib_mlx_resume(handle), "\"status\": \"ready\"");
    expect(lib_mlx_resume(handle), "\"status\": \"ready\"");
    snprintf(config, sizeof config, "{%s \"modelPath\": \"%s\", \"modelId\": \"second\"}", keys, argv[1]);
    expect(lib_mlx_load_model(config), "\"model_id\": \"second\"");
    snprintf(config, sizeof config, "{\"port\": %d}", port);
    expect_error(lib_mlx_start_server(handle + 1, config), "address_in_use");
    expect(lib_mlx_stop_server(handle), "\"status\": \"stopped\"");
    expect(lib_mlx_stop_server(handle), "\"status\": \"stopped\"");
    expect(lib_mlx_unload_model(handle), "\"memory\": {\"before_bytes\": ");
    expect_error(lib_mlx_server_status(handle), "invalid_handle");
    expect_error(lib_mlx_unload_model(handle), "invalid_handle");
    expect_ok(lib_mlx_shutdown());
    expect_error(lib_mlx_server_status(handle + 1), "invalid_handle");
    /* The library is usable after a shutdown; a handle is never used twice. */
    CHECK(load_with(argv[1], keys) > handle + 1, "handle");
    expect_ok(lib_mlx_shutdown());
    return 0;
}
