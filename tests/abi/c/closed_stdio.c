/* A host without stdin, stdout and stderr. Its later output must reach no file or socket of the library's.
 * argv[1]: a file for complaints. argv[2], optional: a model to serve. */
#include <fcntl.h>

#include "check.h"

int main(int argc, char **argv)
{
    int report = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int client;
    char answer[4096] = "";
    ssize_t count, used = 0;

    CHECK(report > 2, "open");
    close(0);
    close(1);
    close(2);
    expect_error(lib_mlx_load_model("{}"), "invalid_argument");
    if (argc > 2) {
        client = send_request(start(load(argv[2])), "GET", "/v1/models", "");
        dprintf(1, "noise");
        dprintf(2, "noise");
        while ((count = read(client, answer + used, sizeof answer - 1 - (size_t)used)) > 0)
            used += count;
        if (strncmp(answer, "HTTP/1.1 200", 12) || strstr(answer, "noise"))
            dprintf(report, "unexpected answer: %s\n", answer);
    }
    dprintf(report, "done\n");
    return 0;
}
