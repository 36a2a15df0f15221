/* Clients that go away in the middle of an answer do not end the host with SIGPIPE. argv[1]: a model. */
#include <signal.h>

#include "check.h"

enum { TRIES = 300, STREAMS = 5 };

int main(int argc, char **argv)
{
    int port;

    CHECK(argc == 2, "usage: sigpipe MODEL");
    signal(SIGPIPE, SIG_DFL);
    port = start(load(argv[1]));
    for (int i = 0; i < TRIES; i++)
        close(send_request(port, "GET", "/v1/models", ""));
    for (int i = 0; i < STREAMS; i++)
        close(begin_stream(port, "loop"));
    expect(lib_mlx_server_status(1), "\"running\"");
    return 0;
}
