// What the header makes of answers that the real library does not give on demand: this program is the library.
#include <cstring>

#include "check.hpp"

using namespace lib_mlx;

static const char *next = "";
static int given, released, unloaded;

static char *answer()
{
    given += next != nullptr;
    return next ? strdup(next) : nullptr;
}

extern "C" {
char *lib_mlx_load_model(const char *) { return answer(); }
char *lib_mlx_start_server(std::int64_t, const char *) { return answer(); }
char *lib_mlx_stop_server(std::int64_t) { return answer(); }
char *lib_mlx_server_status(std::int64_t) { return answer(); }
char *lib_mlx_suspend(std::int64_t) { return answer(); }
char *lib_mlx_resume(std::int64_t) { return answer(); }
char *lib_mlx_shutdown() { return answer(); }
char *lib_mlx_version() { return answer(); }
char *lib_mlx_unload_model(std::int64_t)
{
    unloaded++;
    return answer();
}
void lib_mlx_free(void *ptr)
{
    released += ptr != nullptr;
    std::free(ptr);
}
}

static void errors()
{
    next = R"({"ok": false, "error": {"code": "brand_new", "message": "m\u00e9", "hint": "h", "more": 1}, "new": []})";
    Result<Model> model = Model::load("{}");
    check_error(model, "brand_new");
    CHECK(model.error().message == "m\xc3\xa9" && model.error().hint == "h" && model.json() == next);
    next = nullptr;
    check_error(Model::load("{}"), code::out_of_memory);
    check_error(shutdown(), code::out_of_memory);
    for (const char *strange : {"", "nonsense", "[]", "{}", "null", R"({"ok": 1})", R"({"ok": false})", R"({"ok": true)"}) {
        next = strange;
        check_error(version(), code::invalid_answer);
    }
    next = R"({"ok": false, "error": {"code": 7}})";
    CHECK(!shutdown());
}

static void states()
{
    Model model = Model::adopt(3);

    next = R"({"ok": true, "handle": 3, "model": {"status": "dreaming", "progress": "much", "error": null, "x": {}},
               "server": {"status": "running", "port": 8080, "base_url": "u", "uds": null}})";
    Result<Status> status = model.status();
    CHECK(status && status->handle == 3 && status->model.state == ModelState::unknown);
    CHECK(status->model.status == "dreaming" && status->model.progress == 0 && !status->model.error);
    CHECK(!status->model.context_length && !status->model.blas);
    CHECK(status->server.state == ServerState::running && status->server.port == 8080 && !status->server.uds);
    next = R"({"ok": true, "model": {"status": "failed", "error": {"code": "engine_died", "message": "m", "hint": ""}}})";
    status = model.status();
    CHECK(status->model.state == ModelState::failed && status->model.error->code == code::engine_died);
    CHECK(status->server.state == ServerState::unknown && status->server.status.empty());
    next = R"({"ok": true, "version": "9", "abi_version": 2, "python_version": null, "mlx_version": "1"})";
    CHECK(version()->abi_version == 2 && !version()->python_version && version()->mlx_version == "1");
    next = R"({"ok": true})";
    CHECK(model.release() == 3 && model.handle() == 0);
}

static void ownership()
{
    unloaded = 0;
    next = R"({"ok": true, "handle": 5, "status": "loading", "model_id": "m", "memory": {"before_bytes": 2, "after_bytes": 1}})";
    {
        Model first = *Model::load(Config());
        Model second = std::move(first);
        CHECK(first.handle() == 0 && second.handle() == 5 && unloaded == 0);
        Model third = Model::adopt(6);
        third = std::move(second);
        CHECK(unloaded == 1 && third.handle() == 5 && second.handle() == 0);
        Model &same = third;
        third = std::move(same);
        CHECK(unloaded == 1 && third.handle() == 5);
        Result<Memory> memory = third.unload();
        CHECK(unloaded == 2 && memory->before_bytes == 2 && memory->after_bytes == 1 && third.handle() == 0);
        Result<Model> kept = Model::load(Config());
        CHECK(kept.ok() && kept->handle() == 5);
    }
    CHECK(unloaded == 3);
    static_assert(!std::is_copy_constructible_v<Model> && std::is_nothrow_move_constructible_v<Model>);
    static_assert(!std::is_copy_assignable_v<Model> && std::is_nothrow_move_assignable_v<Model>);
}

int main()
{
    errors();
    states();
    ownership();
    CHECK(given == released);
    return 0;
}
