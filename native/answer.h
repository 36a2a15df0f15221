/* JSON error answers, written without Python. Shared by the front and the backend. */
#ifndef LM_ANSWER_H
#define LM_ANSWER_H

/* Why something failed: the parts of an error object. */
struct lm_failure {
    char code[32];
    char message[2048];
    char hint[512];
};

/* Fills `why`; the message is a printf format. Always returns -1, so that callers can `return lm_fail(...)`. */
int lm_fail(struct lm_failure *why, const char *code, const char *hint, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* {"ok": false, "error": {...}} in ASCII, to be released with free(); NULL when out of memory. */
char *lm_failure_json(const struct lm_failure *why);
char *lm_error_json(const char *code, const char *message, const char *hint);

#endif
