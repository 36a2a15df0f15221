/* lib_mlx_server_status() answers while Python's lock is held by somebody who does not let go.
 * argv[1], optional: a model whose status is asked. */
#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

static int64_t handle = 1;
static double longest;

static void *poll_status(void *needle)
{
    for (int i = 0; i < 1000; i++) {
        double began = seconds();
        expect(lib_mlx_server_status(handle), needle);
        if (seconds() - began > longest)
            longest = seconds() - began;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int (*take_gil)(void);
    void *symbol;

    if (argc > 1)
        start(handle = load(argv[1]));
    else
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    symbol = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    CHECK(symbol, "libpython is not global");
    memcpy(&take_gil, &symbol, sizeof symbol);
    take_gil();
    alarm(10); /* a deadlock ends here */
    CHECK(!pthread_create(&thread, NULL, poll_status, argc > 1 ? "\"running\"" : "invalid_handle"), "thread");
    pthread_join(thread, NULL);
    CHECK(longest < 0.25, "a status took %f s", longest);
    _exit(0);
}
