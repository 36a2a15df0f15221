/* A host that opens the library as Dart, Node and Swift do: RTLD_LOCAL, without linking it.
 * argv[1]: the library. argv[2], optional: a directory to change into after opening. */
#include <dlfcn.h>

#include "check.h"

typedef char *load_fn(const char *);
typedef void free_fn(void *);

/* ISO C has no cast from an object pointer to a function pointer; POSIX says that copying works. */
static void look_up(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    CHECK(symbol, "no %s", name);
    memcpy(function, &symbol, sizeof symbol);
}

static void use(void *library)
{
    load_fn *load_model;
    free_fn *release;
    char *answer;

    CHECK(library, "%s", dlerror());
    look_up(library, "lib_mlx_load_model", &load_model);
    look_up(library, "lib_mlx_free", &release);
    answer = load_model("{}");
    CHECK(answer && strstr(answer, "\"invalid_argument\""), "%s", answer ? answer : "NULL");
    release(answer);
}

int main(int argc, char **argv)
{
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);

    CHECK(library, "%s", dlerror());
    if (argc > 2) {
        CHECK(!chdir(argv[2]), "cannot change to %s", argv[2]);
        use(library);
        return 0;
    }
    use(library);
    /* Closed and opened again, as plugin hosts do: threads of the library run on meanwhile. */
    for (int i = 0; i < 3; i++) {
        CHECK(!dlclose(library), "%s", dlerror());
        library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        use(library);
    }
    return 0;
}
