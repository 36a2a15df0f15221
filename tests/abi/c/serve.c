/* A host that serves a model until its stdin ends. argv[1]: a model. Prints the port; then unloads and exits 0. */
#include "check.h"

int main(int argc, char **argv)
{
    int64_t handle;

    CHECK(argc == 2, "usage: serve MODEL");
    handle = load(argv[1]);
    printf("%d\n", start(handle));
    fflush(stdout);
    while (getchar() != EOF)
        ;
    expect(lib_mlx_stop_server(handle), "\"status\": \"stopped\"");
    expect(lib_mlx_unload_model(handle), "\"status\": \"unloaded\"");
    return 0;
}
