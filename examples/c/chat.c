/* Talks to a model through liblib_mlx: `chat MODEL [PROMPT]`.
 *
 * Loads MODEL (a directory or a name in the store) through the C library and shows the progress on stderr; starts
 * its HTTP server on a free port; streams one chat completion from it over a plain socket, prints the text as it
 * arrives, then how fast it came; cancels a second one in mid-answer; takes everything down again. Exit status 0, or
 * 1 after an error, whose code, message and hint go to stderr. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "http.h"
#include "json.h"
#include "lib_mlx.h"

static const char default_prompt[] = "Why is the sky blue? Answer in two sentences.";

static const char long_prompt[] = "loop: count from one to a thousand, in words.";

enum { MAX_TOKENS = 256, LONG_ANSWER = 3000 };

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sleep_ms(long duration)
{
    struct timespec wait = {.tv_sec = duration / 1000, .tv_nsec = duration % 1000 * 1000000};

    nanosleep(&wait, NULL);
}

/* ---- chat completions ---- */

struct speed {
    double sent, first, last;
    long tokens;
};

/* One event of the stream: a piece of text, the usage at the end, or an error. */
static void handle_event(const char *event, struct speed *speed)
{
    static char text[LINE];
    const char *delta = json_value(event, "delta"), *usage = json_value(event, "usage");

    if (!strncmp(event, "{\"error\"", 8))
        fail(event);
    if (delta && json_string(delta, "content", text) && *text) {
        speed->last = seconds();
        if (!speed->first)
            speed->first = speed->last;
        fputs(text, stdout);
        fflush(stdout);
    }
    if (usage && *usage == '{')
        speed->tokens = json_integer(usage, "completion_tokens");
}

static void print_speed(const struct speed *speed)
{
    double duration = speed->last - speed->first;

    printf("\n\n%ld tokens", speed->tokens);
    if (speed->tokens > 1 && duration > 0)
        printf(", %.1f tokens/s", (double)(speed->tokens - 1) / duration);
    if (speed->first)
        printf(", first token after %.2f s", speed->first - speed->sent);
    printf("\n");
}

static char *chat_body(const char *prompt, int max_tokens)
{
    static const char format[] = "{\"model\": \"chat\", \"stream\": true, \"stream_options\": {\"include_usage\": true}, "
                                 "\"temperature\": 0, \"max_tokens\": %d, "
                                 "\"messages\": [{\"role\": \"user\", \"content\": %s}]}";
    char *quoted = json_quote(prompt);
    size_t size = sizeof format + strlen(quoted) + 16;
    char *body = malloc(size);

    if (!body)
        die("out of memory");
    snprintf(body, size, format, max_tokens, quoted);
    free(quoted);
    return body;
}

static void begin(struct http *http, int port, const char *prompt, int max_tokens)
{
    static char line[LINE];
    char *body = chat_body(prompt, max_tokens);
    int status = ask(http, port, "POST /v1/chat/completions", body);

    free(body);
    if (status != 200 && read_line(http, body_byte, line))
        fail(line);
}

/* The JSON of the stream's next event; NULL at its end. */
static const char *next_event(struct http *http)
{
    static char line[LINE];

    while (read_line(http, body_byte, line))
        if (!strncmp(line, "data: {", 7))
            return line + 6;
    return NULL;
}

static void chat(int port, const char *prompt)
{
    static struct http http;
    struct speed speed = {.sent = seconds()};
    const char *event;

    begin(&http, port, prompt, MAX_TOKENS);
    while ((event = next_event(&http)))
        handle_event(event, &speed);
    close(http.socket);
    print_speed(&speed);
}

static long in_flight(int port)
{
    static struct http http;
    static char line[LINE];

    if (ask(&http, port, "GET /health", "") != 200 || !read_line(&http, body_byte, line))
        die("the server is not well");
    close(http.socket);
    return json_integer(line, "in_flight");
}

/* A client that closes its connection cancels its request. */
static void cancel(int port)
{
    static struct http http;
    const char *event;
    double until;

    begin(&http, port, long_prompt, LONG_ANSWER);
    while ((event = next_event(&http)) && !strstr(event, "\"content\":\""))
        ;
    printf("a long answer: in flight %ld, ", in_flight(port));
    close(http.socket);
    for (until = seconds() + 10; in_flight(port) > 0; sleep_ms(20))
        if (seconds() > until)
            die("the request was not cancelled");
    printf("cancelled: in flight 0\n");
}

/* ---- the library ---- */

/* Ends the program unless the answer is a success; the caller releases it. */
static char *checked(char *answer)
{
    if (!answer)
        die("out of memory");
    if (strncmp(answer, "{\"ok\": true", 11))
        fail(answer);
    return answer;
}

static int64_t load(const char *model)
{
    char *quoted = json_quote(model);
    size_t size = strlen(quoted) + 64;
    char *config = malloc(size), *answer;
    int64_t handle;

    if (!config)
        die("out of memory");
    snprintf(config, size, "{\"model_path\": %s, \"model_id\": \"chat\", \"wait\": false}", quoted);
    answer = checked(lib_mlx_load_model(config));
    handle = json_integer(answer, "handle");
    lib_mlx_free(answer);
    free(config);
    free(quoted);
    return handle;
}

/* Shows how the load goes on until the model is ready. A status never blocks: a UI thread may ask for it. */
static void wait_until_ready(int64_t handle)
{
    char state[LINE] = "loading", stage[LINE] = "";
    long percent, shown = -1;

    while (!strcmp(state, "loading")) {
        char *status = checked(lib_mlx_server_status(handle));
        const char *model = json_value(status, "model"), *progress = json_value(status, "progress");

        if (strlen(status) >= LINE || !model || !json_string(model, "status", state))
            die(status);
        if (!strcmp(state, "failed"))
            fail(model);
        percent = progress ? (long)(100 * strtod(progress, NULL)) : 0;
        if (percent != shown && json_string(model, "stage", stage) && *stage)
            fprintf(stderr, "loading: %ld %% (%s)\n", percent, stage);
        shown = percent;
        lib_mlx_free(status);
        sleep_ms(20);
    }
}

static void unload(int64_t handle)
{
    char *answer = checked(lib_mlx_unload_model(handle));

    printf("unloaded: %ld MB, then %ld MB\n", json_integer(answer, "before_bytes") / 1000000,
           json_integer(answer, "after_bytes") / 1000000);
    lib_mlx_free(answer);
}

int main(int argc, char **argv)
{
    const char *prompt = argc > 2 ? argv[2] : default_prompt;
    int64_t handle;
    char *server;
    int port;

    if (argc < 2 || argc > 3)
        die("usage: chat MODEL [PROMPT]");
    handle = load(argv[1]);
    wait_until_ready(handle);
    server = checked(lib_mlx_start_server(handle, "{\"port\": 0}"));
    port = (int)json_integer(server, "port");
    lib_mlx_free(server);
    chat(port, prompt);
    cancel(port);
    lib_mlx_free(checked(lib_mlx_stop_server(handle)));
    unload(handle);
    return 0;
}
