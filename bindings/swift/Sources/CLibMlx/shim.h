/* The header is the checkout's or the installed package's: its folder is given with -I or by pkg-config. */
#include <lib_mlx.h>
