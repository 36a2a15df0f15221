/* Part of the unit that cffi generates: everything that needs its static functions. */
#include "interpreter.h"

static int cffi_start_python(void); /* defined by cffi further below */

int lm_attach_python(void)
{
    return cffi_start_python();
}
