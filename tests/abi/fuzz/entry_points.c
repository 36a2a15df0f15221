/* Fuzzes every function of lib_mlx.h. An input is a list of calls, each "FUNCTION HANDLE JSON" ended by NUL:
 *
 *     function  l load, s start, t stop, q status, u unload, p suspend, r resume, d shutdown, v version
 *     handle    '0' to '3': what the first to fourth load of this input returned; others: numbers that are no handle
 *
 * Each answer must be an answer of the header: ASCII, one object, and no `internal` error, which is a defect.
 *
 * The fuzzer must not leave its sandbox: the working directory, which holds models to load. No text that it makes
 * up names anything else, because slashes, tildes and ASCII written as \u00XX do not get through, nor does an address
 * other than the loopback.
 *
 * With SHOW in the environment, calls and answers go to stderr: `SHOW=1 ./entry_points INPUT`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib_mlx.h"

enum { CALLS = 24, LOADS = 4 };

static int64_t handles[LOADS];
static int loads;

static void defect(const char *what, const char *answer)
{
    fprintf(stderr, "%s: %s\n", what, answer ? answer : "NULL");
    abort();
}

/* Releases the answer. */
static void check(char *answer)
{
    size_t length = answer ? strlen(answer) : 0;

    if (getenv("SHOW"))
        fprintf(stderr, "    %s\n", answer ? answer : "NULL");
    if (length < 12 || answer[length - 1] != '}' ||
        (strncmp(answer, "{\"ok\": true", 11) && strncmp(answer, "{\"ok\": false, \"error\": {\"code\": \"", 33)))
        defect("not an answer", answer);
    for (size_t i = 0; i < length; i++)
        if (answer[i] < ' ' || answer[i] > '~')
            defect("not ASCII", answer);
    if (strstr(answer, "\"code\": \"internal\""))
        defect("a defect of the library", answer);
    lib_mlx_free(answer);
}

static void load(const char *json)
{
    char *answer = lib_mlx_load_model(json), *handle = answer ? strstr(answer, "\"handle\": ") : NULL;

    if (handle && !strncmp(answer, "{\"ok\": true", 11))
        handles[loads++] = strtoll(handle + 10, NULL, 10);
    check(answer);
}

static int64_t chosen(char which)
{
    static const int64_t strange[] = {0, -1, 99, INT64_MAX, INT64_MIN, 1LL << 32};

    if (which >= '0' && which < '0' + LOADS)
        return handles[which - '0'];
    return strange[(unsigned char)which % (sizeof strange / sizeof *strange)];
}

/* Keeps the text inside the sandbox. */
static void tame(char *json)
{
    for (char *c = json; *c; c++) {
        int is_ascii_escape = c[0] == '\\' && c[1] == 'u' && c[2] == '0' && c[3] == '0' && c[4] >= '2' && c[4] <= '7';
        if (*c == '/' || *c == '~')
            *c = '|';
        else if (is_ascii_escape)
            c[1] = 'v';
        else if (!strncmp(c, "host\"", 5) && strncmp(c + 5, ": \"127.0.0.1\"", 13))
            *c = 'H';
    }
}

static void call(char function, char handle, const char *json)
{
    if (getenv("SHOW"))
        fprintf(stderr, "%c%c%.200s\n", function, handle, json);
    switch (function) {
    case 'l':
        if (loads < LOADS)
            load(json);
        break;
    case 's':
        check(lib_mlx_start_server(chosen(handle), *json ? json : NULL));
        break;
    case 't':
        check(lib_mlx_stop_server(chosen(handle)));
        break;
    case 'q':
        check(lib_mlx_server_status(chosen(handle)));
        break;
    case 'u':
        check(lib_mlx_unload_model(chosen(handle)));
        break;
    case 'p':
        check(lib_mlx_suspend(chosen(handle)));
        break;
    case 'r':
        check(lib_mlx_resume(chosen(handle)));
        break;
    case 'd':
        check(lib_mlx_shutdown());
        break;
    case 'v':
        check(lib_mlx_version());
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *next = text;

    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    memset(handles, 0, sizeof handles);
    loads = 0;
    for (int i = 0; i < CALLS && next < text + size; i++) {
        size_t length = strlen(next);
        tame(next);
        if (length >= 2)
            call(next[0], next[1], next + 2);
        next += length + 1;
    }
    if (loads) /* the next input begins without models */
        check(lib_mlx_shutdown());
    free(text);
    return 0;
}
