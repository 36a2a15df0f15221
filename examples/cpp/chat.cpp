// Talks to a model through lib_mlx.hpp: `chat MODEL [PROMPT]`.
//
// Loads MODEL (a directory or a name in the store) and shows the progress on stderr, starts its HTTP server, streams a
// chat completion and prints the text as it arrives, cancels a second one in mid-answer, and unloads. Exit status 0,
// or 1 after an error, whose code, message and hint go to stderr.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <thread>

#include "http.hpp"
#include "lib_mlx.hpp"

// An app has a JSON library of its own; the header's reader will do here.
using Json = lib_mlx::detail::Json;

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

static const char default_prompt[] = "Why is the sky blue? Answer in two sentences.";
static const char long_prompt[] = "loop: count from one to a thousand, in words.";

static int report(const lib_mlx::Error &error)
{
    std::fprintf(stderr, "%s: %s %s\n", error.code.c_str(), error.message.c_str(), error.hint.c_str());
    return 1;
}

static std::string chat_body(const char *prompt, int max_tokens)
{
    using lib_mlx::Config; // a writer of JSON objects

    Config message = Config().set("role", "user").set("content", prompt);
    return Config()
        .set("model", "chat")
        .set("messages", std::vector<Config>{message})
        .set("max_tokens", max_tokens)
        .set("temperature", 0)
        .set("stream", true)
        .set("stream_options", Config().set("include_usage", true))
        .json();
}

// A chat completion under way.
class Chat {
  public:
    Chat(int port, const char *prompt, int max_tokens)
        : request(port, "POST /v1/chat/completions", chat_body(prompt, max_tokens))
    {
    }

    // The next piece of text; none at the end, or after an error.
    std::optional<std::string> next()
    {
        std::string line;

        while (!error && request.line(line)) {
            bool is_event = line.rfind("data: {", 0) == 0;
            std::optional<Json> json = Json::parse(is_event ? std::string_view(line).substr(6) : line);
            if (!json || !json->is_object())
                continue;
            if ((*json)["error"].is_object())
                error = lib_mlx::detail::read_error((*json)["error"]);
            if (std::optional<std::int64_t> count = (*json)["usage"]["completion_tokens"].integer)
                tokens = *count;
            for (const Json &choice : (*json)["choices"].items)
                if (std::string text = choice["delta"]["content"].text(); !text.empty())
                    return text;
        }
        if (!error && request.status != 200)
            error = lib_mlx::Error{"server", "No answer from the server.", ""};
        return std::nullopt;
    }

    std::int64_t tokens = 0;
    std::optional<lib_mlx::Error> error;

  private:
    Request request;
};

static int stream(int port, const char *prompt)
{
    Clock::time_point sent = Clock::now(), first = sent;
    Chat chat(port, prompt, 256);

    while (std::optional<std::string> text = chat.next()) {
        first = first == sent ? Clock::now() : first;
        std::fputs(text->c_str(), stdout);
        std::fflush(stdout);
    }
    if (chat.error)
        return report(*chat.error);
    std::printf("\n\n%lld tokens, first token after %.2f s\n", static_cast<long long>(chat.tokens),
                std::chrono::duration<double>(first - sent).count());
    return 0;
}

static long long in_flight(int port)
{
    Request request(port, "GET /health");
    std::string line;
    std::optional<Json> json = request.line(line) ? Json::parse(line) : std::nullopt;

    return json ? (*json)["in_flight"].integer.value_or(-1) : -1;
}

// Leaving the scope closes the connection, and the server ends the request.
static int cancel(int port)
{
    {
        Chat chat(port, long_prompt, 3000);
        if (!chat.next())
            return report(chat.error.value_or(lib_mlx::Error{"server", "The answer was empty.", ""}));
        std::printf("a long answer: in flight %lld, ", in_flight(port));
    }
    for (Clock::time_point until = Clock::now() + 10s; in_flight(port) != 0; std::this_thread::sleep_for(20ms))
        if (Clock::now() > until)
            return report({"server", "The request was not cancelled.", ""});
    std::printf("cancelled: in flight 0\n");
    return 0;
}

// A status never blocks: a UI thread may ask for it.
static int wait_until_ready(const lib_mlx::Model &model)
{
    for (double shown = -1;; std::this_thread::sleep_for(20ms)) {
        lib_mlx::Result<lib_mlx::Status> status = model.status();
        if (!status)
            return report(status.error());
        if (status->model.error)
            return report(*status->model.error);
        if (status->model.state != lib_mlx::ModelState::loading)
            return 0;
        if (status->model.progress != shown && !status->model.stage.empty())
            std::fprintf(stderr, "loading: %.0f %% (%s)\n", 100 * status->model.progress, status->model.stage.c_str());
        shown = status->model.progress;
    }
}

static int run(const char *path, const char *prompt)
{
    using lib_mlx::Config;

    auto model = lib_mlx::Model::load(Config().set("model_path", path).set("model_id", "chat").set("wait", false));
    if (!model)
        return report(model.error());
    if (wait_until_ready(*model))
        return 1;
    auto server = model->start_server();
    if (!server)
        return report(server.error());
    if (stream(server->port, prompt) || cancel(server->port))
        return 1;
    if (auto stopped = model->stop_server(); !stopped)
        return report(stopped.error());
    auto memory = model->unload();
    if (!memory)
        return report(memory.error());
    std::printf("unloaded: %lld MB, then %lld MB\n", static_cast<long long>(memory->before_bytes / 1000000),
                static_cast<long long>(memory->after_bytes / 1000000));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 || argc == 3)
        return run(argv[1], argc == 3 ? argv[2] : default_prompt);
    std::fputs("usage: chat MODEL [PROMPT]\n", stderr);
    return 1;
}
