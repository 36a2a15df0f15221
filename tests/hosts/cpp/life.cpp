// The header over the real library. argv[1]: a crafted model.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "../../../examples/cpp/http.hpp"
#include "check.hpp"

using namespace lib_mlx;
using namespace std::chrono_literals;

static const char *path;

static Config config()
{
    return Config().set("model_path", path).set("model_id", "crafted");
}

static std::string chat_body(const char *model, bool stream)
{
    return Config()
        .set("model", model)
        .set("stream", stream)
        .set("messages", std::vector<Config>{Config().set("role", "user").set("content", "loop")})
        .json();
}

static void mistakes()
{
    check_error(Model::load("nonsense"), code::invalid_json);
    check_error(Model::load(Config()), code::invalid_argument);
    check_error(Model::load(config().set("surprise", 1)), code::invalid_argument);
    check_error(Model::load(config().set("wait", "yes")), code::invalid_argument);
    check_error(Model::load(Config().set("model_path", "\xff\xfe")), code::invalid_json);
    check_error(Model::load(Config().set("model_path", "/does/not/exist")), code::model_not_found);
    for (std::int64_t handle : {std::int64_t{0}, std::int64_t{99}, INT64_MIN, INT64_MAX}) {
        Model stranger = Model::adopt(handle);
        check_error(stranger.status(), code::invalid_handle);
        check_error(stranger.start_server(), code::invalid_handle);
        check_error(stranger.stop_server(), code::invalid_handle);
        check_error(stranger.suspend(), code::invalid_handle);
        check_error(stranger.resume(), code::invalid_handle);
        check_error(stranger.unload(), code::invalid_handle);
    }
}

static void versions()
{
    Result<Version> found = version();

    CHECK(found && found->version == LIB_MLX_VERSION && found->abi_version == LIB_MLX_ABI_VERSION);
    CHECK(found->python_version && found->mlx_version);
}

static void loading_without_waiting()
{
    Result<Model> model = Model::load(config().set("wait", false));
    Result<Status> status = model->status();

    CHECK(model && status->model.model_path == path);
    for (; status->model.state == ModelState::loading; status = model->status())
        std::this_thread::sleep_for(5ms);
    CHECK(status->model.state == ModelState::ready && status->model.context_length && status->model.device == "cpu");
}

static void serving()
{
    std::int64_t handle;

    {
        Model model = *Model::load(config());
        handle = model.handle();
        CHECK(model.status()->server.state == ServerState::stopped && model.status()->server.port == 0);
        check_error(model.start_server(Config().set("prot", 1)), code::invalid_argument);
        Result<Server> server = model.start_server(Config().set("model_id", "m\xc3\xa9 \"x\"").set("api_key", "auto"));
        CHECK(server && server->port > 0 && server->api_key && server->model_id == "m\xc3\xa9 \"x\"");
        CHECK(server->base_url == "http://127.0.0.1:" + std::to_string(server->port) && server->handle == handle);
        CHECK(model.start_server()->port == server->port && !model.start_server()->api_key);
        CHECK(model.status()->server.state == ServerState::running);
        CHECK(model.suspend() && model.status()->model.state == ModelState::suspended);
        CHECK(model.resume() && model.status()->model.state == ModelState::ready);
        Model second = *Model::load(config());
        check_error(second.start_server(Config().set("port", server->port)), code::address_in_use);
        CHECK(model.stop_server() && model.stop_server());
        CHECK(second.unload()->before_bytes > 0);
    }
    check_error(Model::adopt(handle).status(), code::invalid_handle); // ~Model unloaded
}

static void unloading_while_streaming()
{
    Model model = *Model::load(config());
    Request stream(model.start_server()->port, "POST /v1/chat/completions", chat_body("crafted", true));
    std::string line;

    CHECK(stream.status == 200 && stream.line(line));
    CHECK(model.unload().ok());
    for (int lines = 0; stream.line(line) && line.find("\"shutting_down\"") == line.npos; lines++)
        CHECK(lines < 100000);
    CHECK(line.rfind("data: {\"error\":", 0) == 0);
}

static void wrong_requests()
{
    Model model = *Model::load(config());
    int port = model.start_server()->port;

    CHECK(Request(port, "POST /v1/chat/completions", chat_body("other", true)).status == 404);
    CHECK(Request(port, "POST /v1/chat/completions", "{}").status == 400);
    CHECK(Request(port, "GET /health").status == 200);
    CHECK(model.stop_server().ok());
    CHECK(Request(port, "GET /health").status == 0);
}

static void many_threads()
{
    Model model = *Model::load(config());
    std::atomic<int> failures{0};
    std::vector<std::thread> threads;
    int port = model.start_server()->port;

    for (int i = 0; i < 8; i++)
        threads.emplace_back([&] {
            for (int j = 0; j < 25; j++) {
                failures += !model.status() || model.start_server()->port != port;
                failures += Model::load("{}").error().code != code::invalid_argument;
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    CHECK(failures == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    path = argv[1];
    versions();
    mistakes();
    loading_without_waiting();
    serving();
    unloading_while_streaming();
    wrong_requests();
    many_threads();
    Model left = *Model::load(config());
    CHECK(shutdown());
    check_error(left.status(), code::invalid_handle);
    CHECK(Model::load(config())->status()->model.state == ModelState::ready);
    return 0;
}
