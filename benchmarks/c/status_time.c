/* Times lib_mlx_server_status() in four moments, and a call that goes through Python for comparison.
 * argv[1]: a model. Prints lines: moment, calls, median, 99th percentile and longest in microseconds. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <lib_mlx.h>

enum { CALLS = 20000 };

static double times[CALLS];
static int count;
static int64_t handle;
static volatile int held;

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
    double first = *(const double *)a, second = *(const double *)b;

    return (first > second) - (first < second);
}

static void report(const char *moment)
{
    qsort(times, (size_t)count, sizeof *times, compare);
    printf("%s\t%d\t%.2f\t%.2f\t%.2f\n", moment, count, times[count / 2], times[count * 99 / 100], times[count - 1]);
    count = 0;
}

/* One timed call; whether the answer holds `needle`. */
static int timed(char *call(int64_t), const char *needle)
{
    double began = now_us();
    char *answer = call(handle);
    int holds;

    if (count < CALLS)
        times[count++] = now_us() - began;
    holds = answer && strstr(answer, needle) != NULL;
    lib_mlx_free(answer);
    return holds;
}

static void poll_status(const char *moment, int calls)
{
    while (calls-- && timed(lib_mlx_server_status, "\"ok\": true"))
        ;
    report(moment);
}

static int64_t number_after(char *answer, const char *key)
{
    char *place = answer ? strstr(answer, key) : NULL;
    int64_t number;

    if (!place) {
        fprintf(stderr, "no %s in %s\n", key, answer ? answer : "NULL");
        exit(1);
    }
    number = strtoll(place + strlen(key), NULL, 10);
    lib_mlx_free(answer);
    return number;
}

/* Holds Python's lock for two seconds. */
static void *hold_lock(void *unused)
{
    int (*take)(void);
    void (*release)(int);
    void *symbols[2] = {dlsym(RTLD_DEFAULT, "PyGILState_Ensure"), dlsym(RTLD_DEFAULT, "PyGILState_Release")};
    int state;

    (void)unused;
    memcpy(&take, &symbols[0], sizeof take);
    memcpy(&release, &symbols[1], sizeof release);
    state = take();
    held = 1;
    sleep(2);
    held = 0;
    release(state);
    return NULL;
}

/* A stream of a long prompt, of which nothing is read: the model is at its prefill. */
static int begin_prefill(int port)
{
    enum { WORDS = 1500 };
    static char body[WORDS * 6 + 256], head[256];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int client = socket(AF_INET, SOCK_STREAM, 0), length, used;

    used = sprintf(body, "{\"stream\": true, \"max_tokens\": 1, \"messages\": [{\"role\": \"user\", \"content\": \"");
    for (int word = 0; word < WORDS; word++)
        used += sprintf(body + used, "w%d ", word % 997);
    used += sprintf(body + used, "\"}]}");
    length = snprintf(head, sizeof head, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                      "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", used);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(client, (struct sockaddr *)&address, sizeof address) || write(client, head, (size_t)length) != length ||
        write(client, body, (size_t)used) != used) {
        perror("request");
        exit(1);
    }
    return client;
}

int main(int argc, char **argv)
{
    char config[4096];
    pthread_t thread;
    int client, port;

    if (argc != 2)
        return 2;
    snprintf(config, sizeof config, "{\"model_path\": \"%s\", \"wait\": false}", argv[1]);
    handle = number_after(lib_mlx_load_model(config), "\"handle\": ");
    while (timed(lib_mlx_server_status, "\"status\": \"loading\""))
        usleep(200);
    report("during a load");
    poll_status("idle", CALLS);
    for (int call = 0; call < 1000; call++)
        timed(lib_mlx_resume, "");
    report("through Python");
    port = (int)number_after(lib_mlx_start_server(handle, NULL), "\"port\": ");
    pthread_create(&thread, NULL, hold_lock, NULL);
    while (!held)
        ;
    poll_status("Python's lock held", CALLS);
    if (!held)
        fprintf(stderr, "the lock was not held for long enough\n");
    pthread_join(thread, NULL);
    client = begin_prefill(port);
    usleep(100000);
    poll_status("during a prefill", CALLS);
    close(client);
    lib_mlx_free(lib_mlx_shutdown());
    return 0;
}
