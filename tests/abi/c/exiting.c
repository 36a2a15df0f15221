/* The host calls exit(7) at an awkward moment. argv[1]: which; argv[2]: a model, for most of them; argv[3]: more of
 * the configuration, if given. */
#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

static const char *config;

static void *load_in_thread(void *unused)
{
    lib_mlx_free(lib_mlx_load_model(config));
    return unused;
}

static void load_in_background(void)
{
    pthread_t thread;

    CHECK(!pthread_create(&thread, NULL, load_in_thread, NULL), "pthread_create");
}

/* Takes Python's lock and keeps it. */
static void block_python(void)
{
    void *symbol = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    int (*ensure)(void);

    CHECK(symbol, "libpython is not global");
    memcpy(&ensure, &symbol, sizeof ensure);
    ensure();
}

int main(int argc, char **argv)
{
    static char model[4096];
    const char *when = argv[1], *keys = argc > 3 ? argv[3] : "";

    snprintf(model, sizeof model, "{%s \"model_path\": \"%s\", \"model_id\": \"crafted\"}", keys,
             argc > 2 ? argv[2] : "/x");
    config = model;
    if (!strcmp(when, "starting")) {
        load_in_background();
        sleep_seconds(0.02);
    } else if (!strcmp(when, "started")) {
        load_in_thread(NULL);
    } else if (!strcmp(when, "loading")) {
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
        load_in_background();
        sleep_seconds(0.3);
    } else if (!strcmp(when, "stuck")) {
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
        block_python();
    } else if (!strcmp(when, "serving")) {
        start(load_with(argv[2], keys));
    } else {
        begin_stream(start(load_with(argv[2], keys)), "loop");
    }
    exit(7);
}
