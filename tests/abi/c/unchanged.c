/* What belongs to the host stays as it was: environment, working directory, locale, limits, signals, standard
 * streams, and how threads compute: the calling one, another one, and those that are made later.
 * argv[1], optional: a model to load and to generate with. */
#include <fcntl.h>
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "check.h"

extern char **environ;

enum { SIGNALS = 65, LIMITS = RLIMIT_NLIMITS };
enum { RESTORER = 0x04000000 }; /* glibc's own mark on any action that was ever set */

/* What each thread has for itself. */
struct own {
    sigset_t blocked;
    int rounding;
    uint64_t control; /* how it computes: rounding, exception masks, whether denormals become zero */
};

/* A standard stream: what it is, and its flags. */
struct stream {
    dev_t device;
    ino_t file;
    off_t place;
    int flags, descriptor_flags;
};

struct snapshot {
    char environment[65536];
    char cwd[4096];
    char locale[1024];
    struct rlimit limits[LIMITS];
    struct sigaction actions[SIGNALS];
    struct own here, elsewhere, later;
    struct stream streams[3];
    mode_t mask;
};

/* The floating-point control registers, without the flags that any computation raises. */
static uint64_t control_word(void)
{
#if defined(__x86_64__)
    uint32_t mxcsr;
    uint16_t x87;

    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    return (uint64_t)x87 << 32 | (mxcsr & ~0x3fu);
#elif defined(__aarch64__)
    uint64_t fpcr;

    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr;
#else
    return 0;
#endif
}

static void *take_own(void *out)
{
    struct own *own = out;

    memset(own, 0, sizeof *own);
    pthread_sigmask(SIG_SETMASK, NULL, &own->blocked);
    own->rounding = fegetround();
    own->control = control_word();
    return NULL;
}

/* ---- another thread, which lives all the while and computes in its own way ---- */

static pthread_barrier_t asked, told;
static struct own told_state;

static void *other_thread(void *unused)
{
    sigset_t usr2;

    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    fesetround(FE_TOWARDZERO);
    for (;;) {
        pthread_barrier_wait(&asked);
        take_own(&told_state);
        pthread_barrier_wait(&told);
    }
    return unused;
}

static void start_other_thread(void)
{
    pthread_t thread;

    CHECK(!pthread_barrier_init(&asked, NULL, 2) && !pthread_barrier_init(&told, NULL, 2), "pthread_barrier_init");
    CHECK(!pthread_create(&thread, NULL, other_thread, NULL), "pthread_create");
}

static void take_threads(struct snapshot *now)
{
    pthread_t thread;

    take_own(&now->here);
    pthread_barrier_wait(&asked);
    pthread_barrier_wait(&told);
    now->elsewhere = told_state;
    CHECK(!pthread_create(&thread, NULL, take_own, &now->later) && !pthread_join(thread, NULL), "pthread_create");
}

static void take_streams(struct snapshot *now)
{
    struct stat info;

    for (int i = 0; i < 3; i++) {
        CHECK(!fstat(i, &info), "descriptor %d", i);
        now->streams[i].device = info.st_dev;
        now->streams[i].file = info.st_ino;
        now->streams[i].place = lseek(i, 0, SEEK_CUR);
        now->streams[i].flags = fcntl(i, F_GETFL);
        now->streams[i].descriptor_flags = fcntl(i, F_GETFD);
    }
}

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
    take_threads(now);
    take_streams(now);
    now->mask = umask(022);
    umask(now->mask);
}

/* Signal by signal: glibc leaves garbage behind the last one. */
static int same_set(const sigset_t *a, const sigset_t *b)
{
    for (int i = 1; i < SIGNALS; i++)
        if (sigismember(a, i) != sigismember(b, i))
            return 0;
    return 1;
}

static void compare_own(const char *which, const struct own *a, const struct own *b)
{
    CHECK(same_set(&a->blocked, &b->blocked), "%s: signal mask", which);
    CHECK(a->rounding == b->rounding, "%s: rounding mode", which);
    CHECK(a->control == b->control, "%s: floating-point control %llx was %llx", which, (unsigned long long)b->control,
          (unsigned long long)a->control);
}

static void compare(const struct snapshot *a, const struct snapshot *b)
{
    CHECK(!strcmp(a->environment, b->environment), "environment:\n%s\nwas\n%s", b->environment, a->environment);
    CHECK(!strcmp(a->cwd, b->cwd), "working directory: %s", b->cwd);
    CHECK(!strcmp(a->locale, b->locale), "locale: %s was %s", b->locale, a->locale);
    CHECK(!memcmp(a->limits, b->limits, sizeof a->limits), "resource limits");
    for (int i = 1; i < SIGNALS; i++)
        CHECK(a->actions[i].sa_handler == b->actions[i].sa_handler &&
                  (a->actions[i].sa_flags & ~RESTORER) == (b->actions[i].sa_flags & ~RESTORER) &&
                  same_set(&a->actions[i].sa_mask, &b->actions[i].sa_mask),
              "handler of signal %d", i);
    compare_own("the calling thread", &a->here, &b->here);
    compare_own("another thread", &a->elsewhere, &b->elsewhere);
    compare_own("a later thread", &a->later, &b->later);
    CHECK(!memcmp(a->streams, b->streams, sizeof a->streams), "standard streams");
    CHECK(a->mask == b->mask, "umask");
}

static void read_to_end(int client)
{
    char text[4096];

    while (read(client, text, sizeof text) > 0)
        ;
    close(client);
}

static void own_handler(int number)
{
    (void)number;
}

int main(int argc, char **argv)
{
    static struct snapshot before, after;
    int64_t handle;
    int port;

    signal(SIGUSR1, own_handler);
    start_other_thread();
    take(&before);
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    take(&after);
    compare(&before, &after);
    if (argc > 1) {
        handle = load(argv[1]);
        port = start(handle);
        close(begin_stream(port, "loop"));
        read_to_end(begin_stream(port, "long"));
        take(&after);
        compare(&before, &after);
        expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    }
    expect_ok(lib_mlx_shutdown());
    take(&after);
    compare(&before, &after);
    return 0;
}
