// Just enough HTTP/1.1 for chat.cpp: one request per connection, the body line by line, chunked or until its end.
#ifndef HTTP_HPP
#define HTTP_HPP

#include <arpa/inet.h>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

// A request to a server on the loopback. Destroying it closes the connection, which cancels what it asked for.
class Request {
  public:
    // `target` is a method and a path: "GET /health". `status` tells how it went; 0: no HTTP answer.
    Request(int port, const std::string &target, const std::string &body = {}) : socket(::socket(AF_INET, SOCK_STREAM, 0))
    {
        sockaddr_in address = {};
        std::string line;

        std::signal(SIGPIPE, SIG_IGN); // a server that is gone is an error, not the end of this program
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<std::uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (socket < 0 || connect(socket, reinterpret_cast<sockaddr *>(&address), sizeof address) ||
            !send(target + " HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(port) +
                  "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
                  std::to_string(body.size()) + "\r\n\r\n" + body) ||
            !raw_line(line) || line.size() < 12)
            return;
        status = std::atoi(line.c_str() + 9);
        while (raw_line(line) && !line.empty())
            chunked = chunked || !strcasecmp(line.c_str(), "transfer-encoding: chunked");
    }

    Request(const Request &) = delete;
    Request &operator=(const Request &) = delete;

    ~Request()
    {
        if (socket >= 0)
            close(socket);
    }

    // The next line of the body without its end; false at the end.
    bool line(std::string &out)
    {
        return read_line(out, [this] { return body_byte(); });
    }

    int status = 0;

  private:
    bool send(std::string_view data)
    {
        while (!data.empty()) {
            ssize_t sent = write(socket, data.data(), data.size());
            if (sent <= 0)
                return false;
            data.remove_prefix(static_cast<std::size_t>(sent));
        }
        return true;
    }

    template <class Source>
    bool read_line(std::string &out, Source source)
    {
        int byte;

        out.clear();
        while ((byte = source()) >= 0 && byte != '\n')
            if (byte != '\r')
                out += static_cast<char>(byte);
        return byte >= 0 || !out.empty();
    }

    bool raw_line(std::string &out)
    {
        return read_line(out, [this] { return next_byte(); });
    }

    int next_byte()
    {
        if (next == used) {
            used = read(socket, buffer, sizeof buffer);
            next = 0;
            if (used <= 0) {
                used = 0;
                return -1;
            }
        }
        return static_cast<unsigned char>(buffer[next++]);
    }

    // A byte of the body, across the borders of chunks.
    int body_byte()
    {
        std::string size;

        while (chunked && !left) {
            if (!raw_line(size))
                return -1;
            if (size.empty())
                continue; // the line end that closes the chunk before
            left = std::strtol(size.c_str(), nullptr, 16);
            if (left <= 0)
                return -1;
        }
        left -= chunked;
        return next_byte();
    }

    int socket;
    char buffer[4096];
    ssize_t used = 0, next = 0;
    bool chunked = false;
    long left = 0; // bytes left in the current chunk
};

#endif
