/* Calls from a thread with a stack of 64 KiB, with JSON nested as deep as the parser allows. argv[1],
 * optional: a model to load, serve and unload from there. */
#include <pthread.h>

#include "check.h"

enum { STACK = 64 << 10, DEPTH = 1015 };

static void *run(void *model)
{
    static char nested[2 * DEPTH + 16];
    int64_t handle;

    memcpy(nested, "{\"x\":", 5);
    memset(nested + 5, '[', DEPTH);
    memset(nested + 5 + DEPTH, ']', DEPTH);
    nested[5 + 2 * DEPTH] = '}';
    expect(lib_mlx_version(), "\"abi_version\": 1");
    expect_error(lib_mlx_load_model(nested), "invalid_argument");
    expect_error(lib_mlx_server_status(1), "invalid_handle");
    if (!model)
        return NULL;
    handle = load(model);
    start(handle);
    expect(lib_mlx_server_status(handle), "\"running\"");
    expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    CHECK(!pthread_attr_setstacksize(&attributes, STACK), "pthread_attr_setstacksize");
    CHECK(!pthread_create(&thread, &attributes, run, argc > 1 ? argv[1] : NULL), "pthread_create");
    pthread_join(thread, NULL);
    return 0;
}
