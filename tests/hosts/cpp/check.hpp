// What the C++ tests share. A program prints nothing and exits 0; or it says what was wrong and exits 1.
#ifndef CHECK_HPP
#define CHECK_HPP

#include <cstdio>
#include <cstdlib>
#include <lib_mlx.hpp>

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                               \
            std::exit(1);                                                                                      \
        }                                                                                                      \
    } while (0)

template <class Value>
void check_error(const lib_mlx::Result<Value> &result, std::string_view code)
{
    if (result.ok() || result.error().code != code || result.error().message.empty()) {
        std::fprintf(stderr, "not %s: %s\n", std::string(code).c_str(), result.json().c_str());
        std::exit(1);
    }
}

#endif
