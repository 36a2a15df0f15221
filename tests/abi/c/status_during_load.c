/* Polls a load that was not waited for, from its first moment to its end. argv[1]: a model.
 * Prints how many answers came and the longest wait for one, in microseconds. */
#include "check.h"

int main(int argc, char **argv)
{
    char config[4096], *answer;
    double began, longest = 0, deadline = seconds() + 60;
    int64_t handle;
    int polls = 0, loading = 1;

    CHECK(argc == 2, "usage: status_during_load MODEL");
    snprintf(config, sizeof config, "{\"model_path\": \"%s\", \"wait\": false}", argv[1]);
    answer = lib_mlx_load_model(config);
    CHECK(answer && strstr(answer, "\"status\": \"loading\""), "%s", answer ? answer : "NULL");
    handle = take_number(answer, "\"handle\": ");
    expect_error(lib_mlx_start_server(handle, NULL), "model_loading");
    while (loading && seconds() < deadline) {
        began = seconds();
        answer = lib_mlx_server_status(handle);
        if (seconds() - began > longest)
            longest = seconds() - began;
        CHECK(answer && strstr(answer, "\"progress\": "), "%s", answer ? answer : "NULL");
        loading = strstr(answer, "\"status\": \"loading\"") != NULL;
        lib_mlx_free(answer);
        polls++;
        sleep_seconds(0.001);
    }
    expect(lib_mlx_server_status(handle), "\"status\": \"ready\"");
    printf("%d %.0f\n", polls, longest * 1e6);
    expect(lib_mlx_unload_model(handle), "\"unloaded\"");
    return 0;
}
