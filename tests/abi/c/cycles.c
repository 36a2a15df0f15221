/* Threads and descriptors do not grow over 50 starts and stops, nor over loads and unloads. argv[1]: a model.
 * Prints both counts. */
#include "check.h"

enum { SERVER_CYCLES = 50, MODEL_CYCLES = 6 };

struct counts {
    int threads, descriptors;
};

static struct counts count(void)
{
    struct counts now = {0, 0};

    /* A thread that pthread_join() has seen end may be listed for a moment longer. */
    sleep_seconds(0.1);
    now.threads = count_entries("/proc/self/task");
    now.descriptors = count_entries("/proc/self/fd");
    return now;
}

static void compare(const char *what, struct counts before, struct counts after)
{
    printf("%s: threads %d -> %d, descriptors %d -> %d\n", what, before.threads, after.threads, before.descriptors,
           after.descriptors);
    CHECK(after.threads <= before.threads && after.descriptors <= before.descriptors, "%s leaves something", what);
}

static void serve(int64_t handle)
{
    close(begin_stream(start(handle), "loop"));
    expect(lib_mlx_stop_server(handle), "\"stopped\"");
}

int main(int argc, char **argv)
{
    struct counts before;
    int64_t handle;

    CHECK(argc == 2, "usage: cycles MODEL");
    handle = load(argv[1]);
    serve(handle);
    before = count();
    for (int i = 0; i < SERVER_CYCLES; i++) {
        start(handle);
        expect(lib_mlx_stop_server(handle), "\"stopped\"");
    }
    compare("start and stop", before, count());
    expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    before = count();
    for (int i = 0; i < MODEL_CYCLES; i++) {
        handle = load(argv[1]);
        serve(handle);
        expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    }
    compare("load and unload", before, count());
    return 0;
}
