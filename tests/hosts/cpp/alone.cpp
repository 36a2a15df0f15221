// The header needs nothing before it, and two units of one program may include it.
#include <lib_mlx.hpp>

int main() { return lib_mlx::version() ? 0 : 1; }
