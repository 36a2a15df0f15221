/* Talks to a model through liblib_mlx: `chat MODEL [PROMPT]`.
 *
 * Loads MODEL (a directory or a name in the store) through the C library, starts its HTTP server on a free
 * port, streams one chat completion from it over a plain socket, prints the text as it arrives, then how fast
 * it came, and takes everything down again. Exit status 0, or 1 after an error, whose JSON goes to stderr. */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lib_mlx.h"

static const char default_prompt[] = "Why is the sky blue? Answer in two sentences.";

enum { MAX_TOKENS = 256 };

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Prints what went wrong and ends the program; the library lets a host exit at any time. */
static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* ---- just enough JSON ---- */

/* The text of `value` as a JSON string with its quotes; the caller frees it. */
static char *json_quote(const char *value)
{
    char *quoted = malloc(6 * strlen(value) + 3), *end = quoted;

    if (!quoted)
        die("out of memory");
    *end++ = '"';
    for (; *value; value++) {
        if (*value == '"' || *value == '\\')
            end += sprintf(end, "\\%c", *value);
        else if ((unsigned char)*value < 0x20)
            end += sprintf(end, "\\u%04x", (unsigned)*value);
        else
            *end++ = *value;
    }
    strcpy(end, "\"");
    return quoted;
}

/* The first value of `key` at or after `json`; NULL when there is none. A key inside a string cannot match:
 * its quotes are escaped there. */
static const char *json_value(const char *json, const char *key)
{
    size_t length = strlen(key);

    for (const char *quote = json; (quote = strchr(quote, '"')); quote++) {
        const char *after = quote + 1 + length;
        if (strncmp(quote + 1, key, length) || *after != '"')
            continue;
        after += 1 + strspn(after + 1, " ");
        if (*after == ':')
            return after + 1 + strspn(after + 1, " ");
    }
    return NULL;
}

static long json_integer(const char *json, const char *key)
{
    const char *value = json_value(json, key);

    return value ? strtol(value, NULL, 10) : 0;
}

static char *append_utf8(char *out, uint32_t code)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

/* The four hex digits after "\u" at `text`; 0 when they are not there. */
static uint32_t hex4(const char *text)
{
    unsigned code = 0;

    return text[0] == '\\' && text[1] == 'u' && sscanf(text + 2, "%4x", &code) == 1 ? code : 0;
}

/* Decodes the escape at `text` (a backslash) and steps over it. */
static char *decode_escape(char *out, const char **text)
{
    static const char plain[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    const char *found;
    uint32_t code = hex4(*text), low;

    if (code) {
        *text += 6;
        low = code >= 0xd800 && code < 0xdc00 ? hex4(*text) : 0;
        if (low) {
            *text += 6;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        return append_utf8(out, code);
    }
    found = strchr(plain, (*text)[1]);
    *out++ = found && *found ? meaning[found - plain] : '?';
    *text += (*text)[1] ? 2 : 1;
    return out;
}

/* Decodes the string that `key` has in `json`; 0 when it has none. `out` must be as long as `json`. */
static int json_string(const char *json, const char *key, char *out)
{
    const char *text = json_value(json, key);

    if (!text || *text++ != '"')
        return 0;
    while (*text && *text != '"') {
        if (*text == '\\')
            out = decode_escape(out, &text);
        else
            *out++ = *text++;
    }
    *out = '\0';
    return 1;
}

/* ---- just enough HTTP/1.1 ---- */

enum { LINE = 1 << 16 };

struct http {
    int socket;
    char buffer[4096];
    ssize_t used, next;
    int chunked;
    long left; /* bytes left in the current chunk */
};

static int next_byte(struct http *http)
{
    if (http->next == http->used) {
        http->used = read(http->socket, http->buffer, sizeof http->buffer);
        http->next = 0;
        if (http->used <= 0) {
            http->used = 0;
            return EOF;
        }
    }
    return (unsigned char)http->buffer[http->next++];
}

/* A line without its end, from whichever source of bytes; 0 at the end. A longer line is cut. */
static int read_line(struct http *http, int (*source)(struct http *), char line[LINE])
{
    size_t length = 0;
    int byte;

    while ((byte = source(http)) != EOF && byte != '\n')
        if (byte != '\r' && length < LINE - 1)
            line[length++] = (char)byte;
    line[length] = '\0';
    return byte != EOF || length > 0;
}

/* A byte of the body, across the borders of chunks. */
static int body_byte(struct http *http)
{
    static char size[LINE];

    if (!http->chunked)
        return next_byte(http);
    if (!http->left) {
        do
            if (!read_line(http, next_byte, size))
                return EOF;
        while (!*size); /* the line end that closes the chunk before */
        http->left = strtol(size, NULL, 16);
        if (http->left <= 0)
            return EOF;
    }
    http->left--;
    return next_byte(http);
}

static void send_all(int client, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = write(client, data, length);
        if (sent <= 0)
            die("the connection was lost");
        data += sent;
        length -= (size_t)sent;
    }
}

/* Sends a JSON body and reads the head of the answer; returns its status. */
static int post(struct http *http, int port, const char *path, const char *body)
{
    static char line[LINE];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    char head[256];
    int length, status = 0;

    memset(http, 0, sizeof *http);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    http->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (http->socket < 0 || connect(http->socket, (struct sockaddr *)&address, sizeof address))
        die("cannot connect to the server");
    length = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                      "Content-Length: %zu\r\nConnection: close\r\n\r\n", path, port, strlen(body));
    send_all(http->socket, head, (size_t)length);
    send_all(http->socket, body, strlen(body));
    if (!read_line(http, next_byte, line) || sscanf(line, "HTTP/1.1 %d", &status) != 1)
        die("no HTTP answer");
    while (read_line(http, next_byte, line) && *line)
        http->chunked |= !strcmp(line, "transfer-encoding: chunked") || !strcmp(line, "Transfer-Encoding: chunked");
    return status;
}

/* ---- one chat completion ---- */

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
        die(event);
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

static char *chat_body(const char *prompt)
{
    static const char format[] = "{\"model\": \"chat\", \"stream\": true, \"stream_options\": {\"include_usage\": true}, "
                                 "\"temperature\": 0, \"max_tokens\": %d, "
                                 "\"messages\": [{\"role\": \"user\", \"content\": %s}]}";
    char *quoted = json_quote(prompt);
    size_t size = sizeof format + strlen(quoted) + 16;
    char *body = malloc(size);

    if (!body)
        die("out of memory");
    snprintf(body, size, format, MAX_TOKENS, quoted);
    free(quoted);
    return body;
}

static void chat(int port, const char *prompt)
{
    static struct http http;
    static char line[LINE];
    struct speed speed = {.sent = seconds()};
    char *body = chat_body(prompt);
    int status = post(&http, port, "/v1/chat/completions", body);

    free(body);
    while (read_line(&http, body_byte, line)) {
        if (status != 200)
            die(line);
        if (!strncmp(line, "data: {", 7))
            handle_event(line + 6, &speed);
    }
    close(http.socket);
    print_speed(&speed);
}

/* ---- the library ---- */

/* Ends the program unless the answer is a success; the caller releases it. */
static char *checked(char *answer)
{
    if (!answer)
        die("out of memory");
    if (strncmp(answer, "{\"ok\": true", 11))
        die(answer);
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
    snprintf(config, size, "{\"model_path\": %s, \"model_id\": \"chat\"}", quoted);
    answer = checked(lib_mlx_load_model(config));
    handle = json_integer(answer, "handle");
    lib_mlx_free(answer);
    free(config);
    free(quoted);
    return handle;
}

int main(int argc, char **argv)
{
    const char *prompt = argc > 2 ? argv[2] : default_prompt;
    int64_t handle;
    char *server;

    if (argc < 2 || argc > 3)
        die("usage: chat MODEL [PROMPT]");
    handle = load(argv[1]);
    server = checked(lib_mlx_start_server(handle, "{\"port\": 0}"));
    chat((int)json_integer(server, "port"), prompt);
    lib_mlx_free(server);
    lib_mlx_free(checked(lib_mlx_stop_server(handle)));
    lib_mlx_free(checked(lib_mlx_unload_model(handle)));
    return 0;
}
