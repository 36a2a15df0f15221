/* Every bad input is answered with JSON. */
#include "check.h"

static const int64_t unknown[] = {0, -1, 1, 99, INT64_MAX, INT64_MIN};

static void bad_configs(char *(*call)(const char *))
{
    expect_error(call(""), "invalid_json");
    expect_error(call("{"), "invalid_json");
    expect_error(call("nonsense"), "invalid_json");
    expect_error(call("[]"), "invalid_json");
    expect_error(call("null"), "invalid_json");
    expect_error(call("\"text\""), "invalid_json");
    expect_error(call("{} {}"), "invalid_json");
    expect_error(call("{\"model_path\": \"\xff\xfe\"}"), "invalid_json");
    expect_error(call("{\"model_path\": \"\xed\xa0\x80\"}"), "invalid_json"); /* a lone surrogate */
    expect_error(call("{\"model_path\": NaN}"), "invalid_json");
    expect_error(call("{\"model_id\": 7, \"modelPath\": \"/m\"}"), "invalid_argument");
    expect_error(call("{\"surprise\": true}"), "invalid_argument");
    expect_error(call("{\"\\u0000\\ud83d\\ude00\": 1}"), "invalid_argument");
}

static void nested(char *(*call)(const char *), size_t depth, const char *code)
{
    char *text = malloc(2 * depth + 16), *end = text;

    CHECK(text, "out of memory");
    end += sprintf(end, "{\"x\":");
    memset(end, '[', depth);
    memset(end + depth, ']', depth);
    strcpy(end + 2 * depth, "}");
    expect_error(call(text), code);
    free(text);
}

static void huge(char *(*call)(const char *), size_t size)
{
    char *text = malloc(size + 32);

    CHECK(text, "out of memory");
    strcpy(text, "{\"model_path\":\"");
    memset(text + 15, 'a', size);
    strcpy(text + 15 + size, "\"}");
    expect(call(text), "{\"ok\": false");
    free(text);
}

static char *start_one(const char *config)
{
    return lib_mlx_start_server(1, config);
}

static void unknown_handles(int64_t handle)
{
    expect_error(lib_mlx_server_status(handle), "invalid_handle");
    expect_error(lib_mlx_start_server(handle, "{}"), "invalid_handle");
    expect_error(lib_mlx_start_server(handle, NULL), "invalid_handle");
    expect_error(lib_mlx_stop_server(handle), "invalid_handle");
    expect_error(lib_mlx_suspend(handle), "invalid_handle");
    expect_error(lib_mlx_resume(handle), "invalid_handle");
    expect_error(lib_mlx_unload_model(handle), "invalid_handle");
}

int main(void)
{
    lib_mlx_free(NULL);
    bad_configs(lib_mlx_load_model);
    bad_configs(start_one);
    nested(lib_mlx_load_model, 1000, "invalid_argument");
    nested(lib_mlx_load_model, 200000, "invalid_json");
    huge(lib_mlx_load_model, 20 << 20);
    huge(start_one, 1 << 20);
    expect_error(lib_mlx_load_model(NULL), "invalid_argument");
    expect_error(lib_mlx_load_model("{\"model_path\": \"/does/not/exist\"}"), "model_not_found");
    expect_error(lib_mlx_load_model("{\"modelPath\": \"/\\u00e9\\u0000x\"}"), "model_not_found");
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        unknown_handles(unknown[i]);
    expect_ok(lib_mlx_shutdown());
    expect_ok(lib_mlx_shutdown());
    return 0;
}
