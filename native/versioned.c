/* liblib_mlx.so.1, by which programs that were linked with the library find it: it only leads to liblib_mlx.so beside
 * it. Wheels hold no symbolic links, and of two copies of the library each would start a Python. */
#include "lm_build.h"

__attribute__((used)) static const char fingerprint[] = LM_FINGERPRINT;
