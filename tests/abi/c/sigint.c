/* Ctrl-C still ends a host that has Python running inside. argv[1], optional: a model to serve. */
#include <signal.h>

#include "check.h"

int main(int argc, char **argv)
{
    signal(SIGINT, SIG_DFL); /* a test run in the background has it ignored, and hands that down */
    if (argc > 1)
        start(load(argv[1]));
    else
        expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    kill(getpid(), SIGINT);
    sleep_seconds(3);
    CHECK(0, "SIGINT did not end the host");
}
