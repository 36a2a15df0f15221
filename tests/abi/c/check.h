/* What the test programs share. A program prints nothing and exits 0 when all is well; otherwise it says on
 * stderr what was not, and exits 1. */
#ifndef CHECK_H
#define CHECK_H

#include <arpa/inet.h>
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lib_mlx.h"

#define CHECK(condition, ...)                                                                                  \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                    \
            fprintf(stderr, __VA_ARGS__);                                                                      \
            fprintf(stderr, "\n");                                                                             \
            _exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

/* The answer must be ASCII JSON that holds `needle`; releases it. */
static inline void expect(char *answer, const char *needle)
{
    CHECK(answer, "NULL instead of %s", needle);
    CHECK(!strncmp(answer, "{\"ok\": ", 7) && answer[strlen(answer) - 1] == '}', "not an answer: %s", answer);
    for (const char *c = answer; *c; c++)
        CHECK(*c >= ' ' && *c <= '~', "not ASCII: %s", answer);
    CHECK(strstr(answer, needle), "no %s in %s", needle, answer);
    lib_mlx_free(answer);
}

static inline void expect_error(char *answer, const char *code)
{
    char needle[128];

    snprintf(needle, sizeof needle, "{\"ok\": false, \"error\": {\"code\": \"%s\"", code);
    expect(answer, needle);
}

static inline void expect_ok(char *answer)
{
    expect(answer, "{\"ok\": true");
}

/* An integer after `key` in an answer; releases it. */
static inline int64_t take_number(char *answer, const char *key)
{
    char *place = answer ? strstr(answer, key) : NULL;
    int64_t number;

    CHECK(place, "no %s in %s", key, answer ? answer : "NULL");
    number = strtoll(place + strlen(key), NULL, 10);
    lib_mlx_free(answer);
    return number;
}

/* `keys`: more of the configuration, each followed by a comma. */
static inline int64_t load_with(const char *model, const char *keys)
{
    char config[4096];

    snprintf(config, sizeof config, "{%s \"model_path\": \"%s\", \"model_id\": \"crafted\"}", keys, model);
    return take_number(lib_mlx_load_model(config), "\"handle\": ");
}

static inline int64_t load(const char *model)
{
    return load_with(model, "");
}

static inline int start(int64_t handle)
{
    return (int)take_number(lib_mlx_start_server(handle, NULL), "\"port\": ");
}

/* Connects to the server and sends a request; the caller reads and closes. */
static inline int send_request(int port, const char *method, const char *path, const char *body)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    char request[4096];
    int client = socket(AF_INET, SOCK_STREAM, 0);
    int length = snprintf(request, sizeof request,
                          "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                          "Connection: close\r\nContent-Length: %zu\r\n\r\n%s",
                          method, path, port, strlen(body), body);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(!connect(client, (struct sockaddr *)&address, sizeof address), "cannot connect to port %d", port);
    CHECK(write(client, request, (size_t)length) == length, "cannot send");
    return client;
}

/* Starts a chat stream that plays `script` and waits until the first text has come. */
static inline int begin_stream(int port, const char *script)
{
    char body[512], answer[8192];
    size_t used = 0;
    ssize_t count;
    int client;

    snprintf(body, sizeof body, "{\"model\": \"crafted\", \"stream\": true, \"max_tokens\": 3000, "
             "\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}]}", script);
    client = send_request(port, "POST", "/v1/chat/completions", body);
    do {
        count = read(client, answer + used, sizeof answer - used - 1);
        CHECK(count > 0, "no stream: %.*s", (int)used, answer);
        used += (size_t)count;
        answer[used] = '\0';
    } while (!strstr(answer, "\"content\":\" ") && used < sizeof answer - 1);
    return client;
}

static inline double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline void sleep_seconds(double duration)
{
    struct timespec wait = {.tv_sec = (time_t)duration, .tv_nsec = (long)((duration - (time_t)duration) * 1e9)};

    nanosleep(&wait, NULL);
}

/* Entries of a directory such as /proc/self/fd. */
static inline int count_entries(const char *directory)
{
    DIR *entries = opendir(directory);
    int count = 0;

    CHECK(entries, "cannot read %s", directory);
    while (readdir(entries))
        count++;
    closedir(entries);
    return count;
}

#endif
