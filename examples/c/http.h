/* Just enough HTTP/1.1 for chat.c: one request per connection, chunked or until its end. */
#ifndef HTTP_H
#define HTTP_H

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "json.h"

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

/* Sends a request and reads the head of the answer; returns its status. */
static int ask(struct http *http, int port, const char *target, const char *body)
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
    length = snprintf(head, sizeof head, "%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                      "Content-Length: %zu\r\nConnection: close\r\n\r\n", target, port, strlen(body));
    send_all(http->socket, head, (size_t)length);
    send_all(http->socket, body, strlen(body));
    if (!read_line(http, next_byte, line) || sscanf(line, "HTTP/1.1 %d", &status) != 1)
        die("no HTTP answer");
    while (read_line(http, next_byte, line) && *line)
        http->chunked |= !strcmp(line, "transfer-encoding: chunked") || !strcmp(line, "Transfer-Encoding: chunked");
    return status;
}

#endif
