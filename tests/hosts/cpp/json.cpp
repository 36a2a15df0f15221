// The reader and the writer of JSON. argv[1], optional: a locale with a comma for a decimal point.
#include <clocale>
#include <cmath>
#include <limits>

#include "check.hpp"

using lib_mlx::Config;
using lib_mlx::detail::Json;

static std::string text_of(std::string_view json)
{
    std::optional<Json> value = Json::parse(json);

    CHECK(value && value->kind == Json::Kind::string);
    return value->string;
}

static void strings()
{
    CHECK(text_of(R"("")").empty());
    CHECK(text_of(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
    CHECK(text_of(R"("\u0041\u00e9\u65e5")") == "A\xc3\xa9\xe6\x97\xa5");
    CHECK(text_of(R"("\uD83d\uDe00!")") == "\xf0\x9f\x98\x80!");
    CHECK(text_of(R"("\ud83d")") == "\xef\xbf\xbd");
    CHECK(text_of(R"("\ude00\ud83d\ud83d\ude00")") == "\xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x98\x80");
    CHECK(text_of(R"("\ud83d\n")") == "\xef\xbf\xbd\n");
    CHECK(text_of(R"("\u0000x")") == std::string("\0x", 2));
    CHECK(text_of("\"caf\xc3\xa9\"") == "caf\xc3\xa9");
}

static void numbers()
{
    for (const char *json : {"0", "-0", "7", "-12", "999999999999999999", "-999999999999999999"})
        CHECK(Json::parse(json)->integer == std::strtoll(json, nullptr, 10));
    CHECK(!Json::parse("99999999999999999999")->integer && !Json::parse("1.0")->integer && !Json::parse("1e3")->integer);
    for (auto [json, value] : {std::pair("0.5", 0.5), {"-1.25e2", -125.0}, {"1E-3", 0.001}, {"0.9999", 0.9999}, {"2e+1", 20.}})
        CHECK(std::fabs(Json::parse(json)->number - value) <= 1e-15 * std::fabs(value));
    CHECK(std::isinf(Json::parse("1e99999999999")->number) && Json::parse("1e-99999999999")->number == 0);
}

static void structures()
{
    std::optional<Json> json = Json::parse(" {\"a\" : [1, {\"b\":null}, [ ], true] ,\n\"c\":{}, \"a\": false} ");

    CHECK(json && json->is_object() && json->items[0].items.size() == 4);
    CHECK((*json)["a"].kind == Json::Kind::boolean && !(*json)["a"].is_true());
    CHECK((*json)["none"]["none"].kind == Json::Kind::null);
    CHECK(Json::parse(std::string(128, '[') + std::string(128, ']')));
    CHECK(!Json::parse(std::string(100000, '[') + std::string(100000, ']')));
}

static void malformed()
{
    for (const char *json : {"", " ", "{", "}", "[", "]", "[1,]", "{,}", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "{1:1}", "[1 2]",
                             "nul", "nulL", "truefalse", "tru", "01", "-", "+1", "1.", ".5", "1e", "1e+", "0x1", "NaN", "Infinity",
                             "\"", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\", "\"\n\"", "\"\t\"", "{} {}", "1 1",
                             "'a'", "{\"a\":}", "[\"a\":1]", "\xef\xbb\xbf{}", "/**/1"})
        if (Json::parse(json)) {
            std::fprintf(stderr, "accepted: %s\n", json);
            std::exit(1);
        }
    CHECK(!Json::parse(std::string_view("1\0", 2)));
    // Cut anywhere, an answer is not JSON.
    std::string answer = R"({"ok": true, "handle": 1, "model": {"progress": 0.5, "stage": "we\u00e9\"ights", "error": null}})";
    CHECK(Json::parse(answer));
    for (std::size_t size = 0; size < answer.size(); size++)
        CHECK(!Json::parse(std::string_view(answer).substr(0, size)));
}

static void configurations()
{
    std::string every;

    CHECK(Config().json() == "{}");
    CHECK(Config().set("a", "x").set("b", false).set("c", 7).set("d", std::string("y")).set("e", std::string_view("z")).json() ==
          R"({"a": "x", "b": false, "c": 7, "d": "y", "e": "z"})");
    CHECK(Config().set("a", 1).set("a", true).json() == R"({"a": true})");
    CHECK(Config().set("big", std::numeric_limits<std::uint64_t>::max()).json() == R"({"big": 18446744073709551615})");
    CHECK(Config().set("a", std::numeric_limits<std::int64_t>::min()).json() == R"({"a": -9223372036854775808})");
    CHECK(Config().set("o", Config().set("i", 0.5)).set("l", std::vector<std::string>{"a", "b\""}).json() ==
          R"({"l": ["a", "b\""], "o": {"i": 0.5}})");
    CHECK(Config().set("m", std::vector<Config>{Config().set("x", 1), Config()}).json() == R"({"m": [{"x": 1}, {}]})");
    CHECK(Config().set("m", std::vector<Config>()).json() == R"({"m": []})");
    CHECK(Config().set("n", std::nan("")).set("i", -INFINITY).json() == R"({"i": null, "n": null})");
    for (int byte = 0; byte < 256; byte++)
        every += static_cast<char>(byte);
    CHECK(text_of(lib_mlx::detail::quote(every)) == every);
    CHECK((*Json::parse(Config().set(every, every).json()))[every].string == every);
    for (double value : {0.1, -2.5e-300, 1e300, 123456.789, 5e-324})
        CHECK(std::strtod(lib_mlx::detail::number(value).c_str(), nullptr) == value);
}

int main(int argc, char **argv)
{
    strings();
    numbers();
    structures();
    malformed();
    configurations();
    if (argc > 1) {
        CHECK(std::setlocale(LC_ALL, argv[1]));
        CHECK(lib_mlx::detail::number(0.5) == "0.5" && lib_mlx::detail::number(-1.5e-9) == "-1.5e-09");
        CHECK(Json::parse("0.5")->number == 0.5);
    }
    return 0;
}
