#include "answer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int lm_fail(struct lm_failure *why, const char *code, const char *hint, const char *format, ...)
{
    va_list arguments;

    snprintf(why->code, sizeof why->code, "%s", code);
    snprintf(why->hint, sizeof why->hint, "%s", hint);
    va_start(arguments, format);
    vsnprintf(why->message, sizeof why->message, format, arguments);
    va_end(arguments);
    return -1;
}

/* Appends `text` escaped for a JSON string. Bytes outside ASCII come from paths in an unknown encoding: each
 * becomes U+FFFD, so that the answer stays ASCII whatever the path was. */
static char *append_escaped(char *out, const char *text)
{
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\' || byte < 0x20 || byte > 0x7e)
            out += sprintf(out, "\\u%04x", byte < 0x80 ? (unsigned)byte : 0xfffdu);
        else
            *out++ = (char)byte;
    }
    *out = '\0';
    return out;
}

char *lm_error_json(const char *code, const char *message, const char *hint)
{
    /* An escaped byte takes six characters; 96 covers the fixed text. */
    char *json = malloc(strlen(code) + 6 * (strlen(message) + strlen(hint)) + 96);
    char *end = json;

    if (!json)
        return NULL;
    end += sprintf(end, "{\"ok\": false, \"error\": {\"code\": \"%s\", \"message\": \"", code);
    end = append_escaped(end, message);
    end += sprintf(end, "\", \"hint\": \"");
    end = append_escaped(end, hint);
    strcpy(end, "\"}}");
    return json;
}

char *lm_failure_json(const struct lm_failure *why)
{
    return lm_error_json(why->code, why->message, why->hint);
}
