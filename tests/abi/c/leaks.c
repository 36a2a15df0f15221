/* Releases neither an answer of the library's own C nor one of Python's: what memcheck must see. */
#include "check.h"

int main(void)
{
    CHECK(lib_mlx_version() && lib_mlx_load_model("{"), "no answer");
    return 0;
}
