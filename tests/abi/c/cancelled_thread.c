/* A host thread that is cancelled inside a call leaves the library usable. */
#include <pthread.h>

#include "check.h"

static void *run(void *unused)
{
    for (;;) {
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
        pthread_testcancel();
    }
    return unused;
}

int main(void)
{
    pthread_t thread;

    for (int i = 0; i < 20; i++) {
        CHECK(!pthread_create(&thread, NULL, run, NULL), "pthread_create");
        sleep_seconds(i ? 0.005 : 0.1);
        pthread_cancel(thread);
        pthread_join(thread, NULL);
    }
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    return 0;
}
