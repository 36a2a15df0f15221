/* Just enough JSON for chat.c; a real host has a JSON library. Keys are found by their name at any depth. */
#ifndef JSON_H
#define JSON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints what went wrong and ends the program; the library lets a host exit at any time. */
static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

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

/* Prints the code, message and hint of the error in an answer (the library's or the server's) and ends. */
static void fail(const char *json)
{
    static const char *const keys[] = {"code", "message", "hint"}, *const formats[] = {"%s: ", "%s", " %s"};
    const char *error = json_value(json, "error");
    char *text = malloc(strlen(json) + 1);

    for (int i = 0; i < 3 && text; i++)
        if (json_string(error ? error : json, keys[i], text) && *text)
            fprintf(stderr, formats[i], text);
    die("");
}

#endif
