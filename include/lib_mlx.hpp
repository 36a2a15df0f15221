/* lib_mlx for C++17: one header over lib_mlx.h, which stays the authority for keys, answers, codes and blocking.
 *
 *     auto model = lib_mlx::Model::load(lib_mlx::Config().set("model_path", "smollm2"));
 *     if (!model)
 *         return report(model.error());
 *     auto server = model->start_server();
 *     if (server)
 *         talk_to(server->base_url); // any OpenAI-compatible client
 *     // ~Model unloads
 *
 * Errors.    Nothing is thrown and no exception or RTTI support is needed: every call gives a Result, which holds a
 *            value or an Error. As anywhere in C++, the standard library's own allocations may end in std::bad_alloc.
 * Blocking.  As in lib_mlx.h: load, start_server, stop_server, suspend, unload and ~Model block the calling thread and
 *            belong on one that may wait (std::thread, std::async); status() and version() may be called from a UI.
 * Threads.   const members may be called from any thread at once, also on one object. unload(), release(), moving and
 *            destroying need what every C++ object needs: that nobody else uses the object meanwhile.
 * Exit.      Do not keep a Model in a static object: its destructor would run inside exit().
 * JSON.      Result::json() is the library's answer as it came, for hosts that have a JSON library. Keys and values that
 *            this header does not know are ignored or `unknown`, so that it works with later libraries. */
#ifndef LIB_MLX_HPP
#define LIB_MLX_HPP

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lib_mlx.h"

namespace lib_mlx {

/* What went wrong: `code` is for programs (see namespace code), `message` and `hint` are for people; `hint` says what
 * to do and may be empty. */
struct Error {
    std::string code;
    std::string message;
    std::string hint;
};

/* The codes of lib_mlx.h, and two of this header: a library may know more. */
namespace code {
inline constexpr std::string_view invalid_json = "invalid_json";
inline constexpr std::string_view invalid_argument = "invalid_argument";
inline constexpr std::string_view invalid_handle = "invalid_handle";
inline constexpr std::string_view model_not_found = "model_not_found";
inline constexpr std::string_view unsupported_model = "unsupported_model";
inline constexpr std::string_view unsupported_feature = "unsupported_feature";
inline constexpr std::string_view corrupt_model = "corrupt_model";
inline constexpr std::string_view insufficient_memory = "insufficient_memory";
inline constexpr std::string_view disk_full = "disk_full";
inline constexpr std::string_view load_cancelled = "load_cancelled";
inline constexpr std::string_view model_loading = "model_loading";
inline constexpr std::string_view suspended = "suspended";
inline constexpr std::string_view engine_died = "engine_died";
inline constexpr std::string_view address_in_use = "address_in_use";
inline constexpr std::string_view server_start_failed = "server_start_failed";
inline constexpr std::string_view shutting_down = "shutting_down";
inline constexpr std::string_view python_not_found = "python_not_found";
inline constexpr std::string_view python_mismatch = "python_mismatch";
inline constexpr std::string_view python_init = "python_init";
inline constexpr std::string_view forked = "forked";
inline constexpr std::string_view internal = "internal";
inline constexpr std::string_view out_of_memory = "out_of_memory";   // the library returned NULL
inline constexpr std::string_view invalid_answer = "invalid_answer"; // the library's answer has not the header's shape
} // namespace code

/* ---- JSON ---- */

namespace detail {

/* A JSON value. Numbers are kept as doubles, and those that are whole and fit as integers too. */
class Json {
  public:
    enum class Kind { null, boolean, number, string, array, object };

    /* A value that fills the whole text, nothing missing and nothing left over; bytes outside ASCII are kept. */
    static std::optional<Json> parse(std::string_view text);

    bool is_object() const { return kind == Kind::object; }
    bool is_true() const { return kind == Kind::boolean && boolean; }

    /* The member of that name, or null; the last one, if there are several. */
    const Json &operator[](std::string_view name) const
    {
        static const Json none;
        const Json *found = &none;

        for (std::size_t i = 0; i < names.size(); i++)
            if (names[i] == name)
                found = &items[i];
        return *found;
    }

    std::string text() const { return string; }
    std::optional<std::string> optional_text() const
    {
        return kind == Kind::string ? std::optional<std::string>(string) : std::nullopt;
    }

    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::optional<std::int64_t> integer;
    std::string string;
    std::vector<Json> items;        // of an array, or an object's values
    std::vector<std::string> names; // an object's
};

/* A strict parser of RFC 8259. */
class Parser {
  public:
    explicit Parser(std::string_view json) : text(json) {}

    bool whole(Json &out)
    {
        space();
        if (!value(out, 0))
            return false;
        space();
        return at == text.size();
    }

  private:
    static constexpr int max_depth = 128;

    bool value(Json &out, int depth)
    {
        if (depth > max_depth)
            return false;
        switch (peek()) {
        case '{':
            return object(out, depth);
        case '[':
            return array(out, depth);
        case '"':
            out.kind = Json::Kind::string;
            return string(out.string);
        case 't':
            out.kind = Json::Kind::boolean;
            out.boolean = true;
            return word("true");
        case 'f':
            out.kind = Json::Kind::boolean;
            return word("false");
        case 'n':
            return word("null");
        default:
            return number(out);
        }
    }

    bool object(Json &out, int depth)
    {
        out.kind = Json::Kind::object;
        at++;
        space();
        if (take('}'))
            return true;
        do {
            space();
            out.names.emplace_back();
            if (peek() != '"' || !string(out.names.back()))
                return false;
            space();
            if (!take(':') || !item(out, depth))
                return false;
        } while (take(','));
        return take('}');
    }

    bool array(Json &out, int depth)
    {
        out.kind = Json::Kind::array;
        at++;
        space();
        if (take(']'))
            return true;
        do
            if (!item(out, depth))
                return false;
        while (take(','));
        return take(']');
    }

    bool item(Json &out, int depth)
    {
        space();
        out.items.emplace_back();
        if (!value(out.items.back(), depth + 1))
            return false;
        space();
        return true;
    }

    bool string(std::string &out)
    {
        at++;
        while (at < text.size() && text[at] != '"') {
            if (static_cast<unsigned char>(text[at]) < 0x20)
                return false;
            if (text[at] != '\\')
                out += text[at++];
            else if (!escape(out))
                return false;
        }
        return take('"');
    }

    bool escape(std::string &out)
    {
        static constexpr std::string_view plain = "\"\\/bfnrt", meaning = "\"\\/\b\f\n\r\t";
        std::uint32_t low = 0, point = 0;

        at++;
        if (std::size_t found = plain.find(peek()); at < text.size() && found != plain.npos) {
            out += meaning[found];
            at++;
            return true;
        }
        if (!hex4(point))
            return false;
        if (point >= 0xd800 && point < 0xdc00 && peek() == '\\') {
            std::size_t before = at++;
            if (hex4(low) && low >= 0xdc00 && low < 0xe000)
                point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
            else
                at = before;
        }
        append_utf8(out, point >= 0xd800 && point < 0xe000 ? 0xfffd : point); // half a pair is no character
        return true;
    }

    /* "uXXXX" */
    bool hex4(std::uint32_t &out)
    {
        if (!take('u') || text.size() - at < 4)
            return false;
        for (int i = 0; i < 4; i++) {
            char c = text[at++];
            std::uint32_t digit = c >= '0' && c <= '9'   ? static_cast<std::uint32_t>(c - '0')
                                  : c >= 'a' && c <= 'f' ? static_cast<std::uint32_t>(c - 'a' + 10)
                                  : c >= 'A' && c <= 'F' ? static_cast<std::uint32_t>(c - 'A' + 10)
                                                         : 16;
            if (digit > 15)
                return false;
            out = out << 4 | digit;
        }
        return true;
    }

    static void append_utf8(std::string &out, std::uint32_t point)
    {
        static constexpr std::uint32_t first[] = {0, 0xc0, 0xe0, 0xf0};
        int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;

        out += static_cast<char>(first[more] | point >> 6 * more);
        while (more--)
            out += static_cast<char>(0x80 | (point >> 6 * more & 0x3f));
    }

    /* By hand: strtod() obeys the locale. Good to a few units in the last place. */
    bool number(Json &out)
    {
        std::size_t digits;
        bool negative = take('-');
        int exponent = 0, scale = 0;
        bool less = false;

        out.kind = Json::Kind::number;
        digits = at;
        run(out.number);
        if (at == digits || (text[digits] == '0' && at - digits > 1))
            return false;
        if (at - digits < 19) { // fits whatever the digits
            std::int64_t whole = 0;
            for (std::size_t i = digits; i < at; i++)
                whole = 10 * whole + (text[i] - '0');
            out.integer = negative ? -whole : whole;
        }
        if (take('.')) {
            digits = at;
            run(out.number);
            scale = static_cast<int>(at - digits);
            if (!scale)
                return false;
            out.integer.reset();
        }
        if (take('e') || take('E')) {
            less = take('-');
            if (!less)
                take('+');
            digits = at;
            for (; peek() >= '0' && peek() <= '9'; at++)
                exponent = exponent < 9999 ? 10 * exponent + (peek() - '0') : exponent;
            if (at == digits)
                return false;
            out.integer.reset();
        }
        power(out.number, (less ? -exponent : exponent) - scale);
        out.number = negative ? -out.number : out.number;
        return true;
    }

    void run(double &digits)
    {
        for (; peek() >= '0' && peek() <= '9'; at++)
            digits = 10 * digits + (peek() - '0');
    }

    static void power(double &value, int exponent)
    {
        for (; exponent < 0 && value > 0; exponent++)
            value /= 10;
        for (; exponent > 0 && value > 0 && value < 1e308; exponent--)
            value *= 10;
    }

    bool word(std::string_view expected)
    {
        bool found = text.substr(at, expected.size()) == expected;

        at += expected.size();
        return found;
    }

    void space()
    {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')
            at++;
    }

    bool take(char expected)
    {
        bool found = at < text.size() && text[at] == expected;

        at += found;
        return found;
    }

    char peek() const { return at < text.size() ? text[at] : '\0'; }

    std::string_view text;
    std::size_t at = 0;
};

inline std::optional<Json> Json::parse(std::string_view text)
{
    Json value;

    return Parser(text).whole(value) ? std::optional<Json>(std::move(value)) : std::nullopt;
}

/* `text` as a JSON string with its quotes, whatever its bytes: what is not UTF-8 is the library's to refuse. */
inline std::string quote(std::string_view text)
{
    std::string out = "\"";

    for (char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
            out += escaped;
        } else {
            out += c;
        }
    }
    return out += '"';
}

/* printf() obeys the locale, whose decimal point may be any bytes; JSON has no infinities: null. */
inline std::string number(double value)
{
    char printed[64];
    std::string out;

    if (value != value || value - value != 0)
        return "null";
    std::snprintf(printed, sizeof printed, "%.17g", value);
    for (const char *c = printed; *c; c++)
        if ((*c >= '0' && *c <= '9') || *c == '-' || *c == '+' || *c == 'e')
            out += *c;
        else if (out.back() != '.')
            out += '.';
    return out;
}

} // namespace detail

/* ---- configurations ---- */

/* A JSON object with the keys of lib_mlx_load_model() or lib_mlx_start_server(), or one of those within them.
 * Strings are UTF-8 and may hold any character; setting a key again replaces its value. Keys are not checked here. */
class Config {
  public:
    Config &set(std::string_view key, std::string_view value) { return put(key, detail::quote(value)); }
    Config &set(std::string_view key, const std::string &value) { return put(key, detail::quote(value)); }
    Config &set(std::string_view key, const char *value) { return put(key, detail::quote(value)); }
    Config &set(std::string_view key, const Config &value) { return put(key, value.json()); }
    Config &set(std::string_view key, const std::vector<std::string> &items)
    {
        return put(key, list(items, detail::quote));
    }
    Config &set(std::string_view key, const std::vector<Config> &items)
    {
        return put(key, list(items, [](const Config &item) { return item.json(); }));
    }
    template <class Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
    Config &set(std::string_view key, Number value)
    {
        if constexpr (std::is_same_v<Number, bool>)
            return put(key, value ? "true" : "false");
        else if constexpr (std::is_integral_v<Number>)
            return put(key, std::to_string(value));
        else
            return put(key, detail::number(static_cast<double>(value)));
    }

    std::string json() const
    {
        std::string out;

        for (const auto &[key, value] : values)
            out += (out.empty() ? "{" : ", ") + detail::quote(key) + ": " + value;
        return out.empty() ? "{}" : out + "}";
    }

  private:
    Config &put(std::string_view key, std::string json)
    {
        values.insert_or_assign(std::string(key), std::move(json));
        return *this;
    }

    template <class Item, class Writer>
    static std::string list(const std::vector<Item> &items, Writer write)
    {
        std::string out = "[";

        for (const Item &item : items)
            out += (out.size() > 1 ? ", " : "") + write(item);
        return out + "]";
    }

    std::map<std::string, std::string> values;
};

/* ---- results ---- */

/* A value, or why there is none. Asking for the one that is not there ends the program. */
template <class Value>
class [[nodiscard]] Result {
  public:
    Result(Value value, std::string json = {}) : found(std::move(value)), answer(std::move(json)) {}
    Result(Error error, std::string json = {}) : failure(std::move(error)), answer(std::move(json)) {}

    bool ok() const { return found.has_value(); }
    explicit operator bool() const { return ok(); }

    Value &value() & { return found ? *found : (std::abort(), *found); }
    const Value &value() const & { return found ? *found : (std::abort(), *found); }
    Value &&value() && { return std::move(value()); }
    Value &operator*() & { return value(); }
    const Value &operator*() const & { return value(); }
    Value &&operator*() && { return std::move(value()); }
    Value *operator->() { return &value(); }
    const Value *operator->() const { return &value(); }

    const Error &error() const { return failure ? *failure : (std::abort(), *failure); }

    /* The answer as the library gave it; empty if it gave none. */
    const std::string &json() const { return answer; }

  private:
    std::optional<Value> found;
    std::optional<Error> failure;
    std::string answer;
};

/* The value of a call that only succeeds or fails. */
struct Done {};

/* ---- what the library tells ---- */

enum class ModelState { loading, ready, suspended, stalled, unloading, failed, unknown };
enum class ServerState { stopped, starting, running, stopping, unknown };

struct ModelStatus {
    ModelState state = ModelState::unknown;
    std::string status; // the state's name, also of one that this header does not know
    std::string model_id;
    std::string model_path;
    double progress = 0; // 0 to 1, meaningful while loading
    std::string stage;   // what the load is doing
    std::optional<Error> error; // why the state is `failed`
    /* Absent until the model is loaded: */
    std::optional<std::int64_t> context_length; // in tokens
    std::optional<std::string> device;          // "cpu", "gpu"
    std::optional<std::string> weights;         // "float32", "float16", "bfloat16", "quantized"
    std::optional<std::string> blas;            // what multiplies on the CPU instead of MLX's own; absent: MLX as shipped
    std::optional<std::string> encoders;        // of images: "waiting" for their first use, "loaded"; absent: none
};

struct ServerStatus {
    ServerState state = ServerState::unknown;
    std::string status;
    /* Empty and 0 unless the server runs: */
    std::string base_url; // such as "http://127.0.0.1:49152"
    std::string host;
    int port = 0;
    std::string model_id;               // what clients call the model
    std::optional<std::string> uds;     // the Unix socket it listens on, if it does
    std::optional<std::string> api_key; // in the answer to the start alone
};

struct Status {
    std::int64_t handle = 0;
    ModelStatus model;
    ServerStatus server;
};

/* Resident memory of the process in bytes, before and after an unload. */
struct Memory {
    std::int64_t before_bytes = 0;
    std::int64_t after_bytes = 0;
};

struct Version {
    std::string version; // of the library found at run time; LIB_MLX_VERSION is that of the header
    int abi_version = 0; // LIB_MLX_ABI_VERSION, if they fit
    std::optional<std::string> python_version;
    std::optional<std::string> mlx_version;
};

namespace detail {

/* An answer's text, released whatever happens to it. */
inline std::optional<std::string> take(char *answer)
{
    struct Guard {
        char *text;
        ~Guard() { lib_mlx_free(text); }
    } guard{answer};

    return answer ? std::optional<std::string>(answer) : std::nullopt;
}

inline Error read_error(const Json &json)
{
    return {json["code"].text(), json["message"].text(), json["hint"].text()};
}

/* What `read` makes of a successful answer. */
template <class Value, class Reader>
Result<Value> read(char *answer, Reader reader)
{
    std::optional<std::string> text = take(answer);
    std::optional<Json> json = text ? Json::parse(*text) : std::nullopt;

    if (!text)
        return Error{std::string(code::out_of_memory), "Memory has run out.", ""};
    if (json && json->is_object() && (*json)["ok"].is_true())
        return Result<Value>(reader(*json), std::move(*text));
    if (json && (*json)["error"].is_object())
        return Result<Value>(read_error((*json)["error"]), std::move(*text));
    return Result<Value>(Error{std::string(code::invalid_answer), "The library's answer has an unknown shape.", ""},
                         std::move(*text));
}

inline Result<Done> read_done(char *answer)
{
    return read<Done>(answer, [](const Json &) { return Done{}; });
}

/* The state of that name: its place in the list, which is the enumeration's, whose last value is `unknown`. */
template <class State, std::size_t count>
State state_named(std::string_view name, const std::string_view (&names)[count])
{
    std::size_t place = 0;

    static_assert(static_cast<std::size_t>(State::unknown) == count);
    while (place < count && names[place] != name)
        place++;
    return static_cast<State>(place);
}

inline ModelStatus read_model(const Json &json)
{
    static constexpr std::string_view names[] = {"loading", "ready", "suspended", "stalled", "unloading", "failed"};
    ModelStatus model;

    model.status = json["status"].text();
    model.state = state_named<ModelState>(model.status, names);
    model.model_id = json["model_id"].text();
    model.model_path = json["model_path"].text();
    model.progress = json["progress"].number;
    model.stage = json["stage"].text();
    if (json["error"].is_object())
        model.error = read_error(json["error"]);
    model.context_length = json["context_length"].integer;
    model.device = json["device"].optional_text();
    model.weights = json["weights"].optional_text();
    model.blas = json["blas"].optional_text();
    model.encoders = json["encoders"].optional_text();
    return model;
}

inline ServerStatus read_server(const Json &json)
{
    static constexpr std::string_view names[] = {"stopped", "starting", "running", "stopping"};
    ServerStatus server;

    server.status = json["status"].text();
    server.state = state_named<ServerState>(server.status, names);
    server.base_url = json["base_url"].text();
    server.host = json["host"].text();
    server.port = static_cast<int>(json["port"].integer.value_or(0));
    server.model_id = json["model_id"].text();
    server.uds = json["uds"].optional_text();
    server.api_key = json["api_key"].optional_text();
    return server;
}

} // namespace detail

/* ---- calls ---- */

/* A running server, seen as it was when it started. It belongs to its model: copies are views, none stops it. */
struct Server : ServerStatus {
    std::int64_t handle = 0; // the model's
};

/* A loaded, or loading, model. Move-only; unloads when it is destroyed. */
class Model {
  public:
    /* Loads a model; blocks until it is ready, or not on the model at all with `"wait": false`: poll status() then. */
    static Result<Model> load(const Config &config) { return load(config.json()); }

    /* The same with the configuration as JSON text in UTF-8. */
    static Result<Model> load(const std::string &config_json)
    {
        return detail::read<Model>(lib_mlx_load_model(config_json.c_str()), [](const detail::Json &json) {
            return Model(json["handle"].integer.value_or(0));
        });
    }

    Model(Model &&other) noexcept : number(std::exchange(other.number, 0)) {}
    Model &operator=(Model &&other) noexcept
    {
        Model old(std::move(other)); // holds our model afterwards, and unloads it

        std::swap(number, old.number);
        return *this;
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    /* Unloads; blocks at most about 10 seconds. */
    ~Model()
    {
        if (number)
            lib_mlx_free(lib_mlx_unload_model(number));
    }

    /* What lib_mlx.h calls the handle; 0 after unload(), release() or a move. */
    std::int64_t handle() const noexcept { return number; }

    /* The model and its server, also during the load. Never blocks. */
    Result<Status> status() const
    {
        return detail::read<Status>(lib_mlx_server_status(number), [](const detail::Json &json) {
            return Status{json["handle"].integer.value_or(0), detail::read_model(json["model"]),
                          detail::read_server(json["server"])};
        });
    }

    /* Starts the HTTP server, or describes the one that runs; blocks until it accepts connections. */
    Result<Server> start_server(const Config &config = {}) const { return start_server(config.json()); }
    Result<Server> start_server(const std::string &config_json) const
    {
        return detail::read<Server>(lib_mlx_start_server(number, config_json.c_str()), [](const detail::Json &json) {
            return Server{detail::read_server(json["server"]), json["handle"].integer.value_or(0)};
        });
    }

    /* Ends running streams with their terminal event and closes the server; blocks at most about 5 seconds. */
    Result<Done> stop_server() const { return detail::read_done(lib_mlx_stop_server(number)); }

    /* Ends all GPU work until resume(); blocks until the step in progress has ended. */
    Result<Done> suspend() const { return detail::read_done(lib_mlx_suspend(number)); }
    Result<Done> resume() const { return detail::read_done(lib_mlx_resume(number)); }

    /* Stops the server, cancels a load in progress, frees the memory; blocks at most about 10 seconds. */
    Result<Memory> unload()
    {
        return detail::read<Memory>(lib_mlx_unload_model(std::exchange(number, 0)), [](const detail::Json &json) {
            const detail::Json &memory = json["memory"];
            return Memory{memory["before_bytes"].integer.value_or(0), memory["after_bytes"].integer.value_or(0)};
        });
    }

    /* Gives the handle away: the model stays loaded. */
    [[nodiscard]] std::int64_t release() noexcept { return std::exchange(number, 0); }

    /* Takes a handle of lib_mlx_load_model() over. */
    static Model adopt(std::int64_t handle) noexcept { return Model(handle); }

  private:
    explicit Model(std::int64_t handle) noexcept : number(handle) {}

    std::int64_t number;
};

/* Stops every server and unloads every model; blocks at most about 3 seconds. A new load works. */
inline Result<Done> shutdown() { return detail::read_done(lib_mlx_shutdown()); }

/* Describes the library; starts no Python. */
inline Result<Version> version()
{
    return detail::read<Version>(lib_mlx_version(), [](const detail::Json &json) {
        return Version{json["version"].text(), static_cast<int>(json["abi_version"].integer.value_or(0)),
                       json["python_version"].optional_text(), json["mlx_version"].optional_text()};
    });
}

} // namespace lib_mlx

#endif
