/* What belongs to the host stays as it was: environment, working directory, locale, limits, signals.
 * argv[1], optional: a model to load and to generate with. */
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "check.h"

extern char **environ;

enum { SIGNALS = 65, LIMITS = RLIMIT_NLIMITS };
enum { RESTORER = 0x04000000 }; /* glibc's own mark on any action that was ever set */

struct snapshot {
    char environment[65536];
    char cwd[4096];
    char locale[1024];
    struct rlimit limits[LIMITS];
    struct sigaction actions[SIGNALS];
    sigset_t blocked;
    mode_t mask;
};

static void take(struct snapshot *now)
{
    size_t used = 0;

    memset(now, 0, sizeof *now);
    for (char **entry = environ; *entry && used < sizeof now->environment; entry++)
        used += (size_t)snprintf(now->environment + used, sizeof now->environment - used, "%s\n", *entry);
    CHECK(getcwd(now->cwd, sizeof now->cwd), "getcwd");
    snprintf(now->locale, sizeof now->locale, "%s", setlocale(LC_ALL, NULL));
    for (int i = 0; i < LIMITS; i++)
        getrlimit((__rlimit_resource_t)i, &now->limits[i]);
    for (int i = 1; i < SIGNALS; i++)
        sigaction(i, NULL, &now->actions[i]);
    pthread_sigmask(SIG_SETMASK, NULL, &now->blocked);
    now->mask = umask(022);
    umask(now->mask);
}

static void compare(const struct snapshot *a, const struct snapshot *b)
{
    CHECK(!strcmp(a->environment, b->environment), "environment:\n%s\nwas\n%s", b->environment, a->environment);
    CHECK(!strcmp(a->cwd, b->cwd), "working directory: %s", b->cwd);
    CHECK(!strcmp(a->locale, b->locale), "locale: %s was %s", b->locale, a->locale);
    CHECK(!memcmp(a->limits, b->limits, sizeof a->limits), "resource limits");
    for (int i = 1; i < SIGNALS; i++)
        CHECK(a->actions[i].sa_handler == b->actions[i].sa_handler &&
                  (a->actions[i].sa_flags & ~RESTORER) == (b->actions[i].sa_flags & ~RESTORER),
              "handler of signal %d", i);
    CHECK(!memcmp(&a->blocked, &b->blocked, sizeof a->blocked), "signal mask");
    CHECK(a->mask == b->mask, "umask");
}

static void own_handler(int number)
{
    (void)number;
}

int main(int argc, char **argv)
{
    static struct snapshot before, after;
    int64_t handle;

    signal(SIGUSR1, own_handler);
    take(&before);
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    take(&after);
    compare(&before, &after);
    if (argc > 1) {
        handle = load(argv[1]);
        close(begin_stream(start(handle), "loop"));
        take(&after);
        compare(&before, &after);
        expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    }
    expect_ok(lib_mlx_shutdown());
    take(&after);
    compare(&before, &after);
    return 0;
}
