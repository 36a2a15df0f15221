/* The first calls come from eight threads at once. */
#include <pthread.h>

#include "check.h"

enum { THREADS = 8, ROUNDS = 20, UNKNOWN = 1000000 };

static pthread_barrier_t barrier;

static void *run(void *argument)
{
    int number = *(int *)argument;

    pthread_barrier_wait(&barrier);
    for (int i = 0; i < ROUNDS; i++) {
        expect(lib_mlx_version(), "\"abi_version\": 1");
        expect_error(lib_mlx_server_status(UNKNOWN + number), "invalid_handle");
        if (number % 2)
            expect_error(lib_mlx_load_model("{}"), "invalid_argument");
        else
            expect_error(lib_mlx_stop_server(UNKNOWN + number), "invalid_handle");
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    int numbers[THREADS];

    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK(!pthread_create(&threads[i], NULL, run, &numbers[i]), "pthread_create");
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
