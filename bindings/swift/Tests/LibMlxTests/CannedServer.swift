import Foundation

/// An HTTP server on a free port that answers each connection with the same pieces, one after another, and closes it.
/// It listens until the tests end.
struct CannedServer {
    let url: URL

    /// - Parameters:
    ///   - pieces: the bytes to send, head included.
    ///   - pause: how long to wait between two of them, in seconds.
    init(_ pieces: [[UInt8]], pause: TimeInterval = 0) throws {
        signal(SIGPIPE, SIG_IGN)  // of clients that leave early
        #if canImport(Darwin)
        let listener = socket(AF_INET, SOCK_STREAM, 0)
        #else
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        #endif
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = INADDR_LOOPBACK.bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutableBytes(of: &address) { bytes in
            bytes.withMemoryRebound(to: sockaddr.self) { address in
                bind(listener, address.baseAddress, length) == 0 && listen(listener, 8) == 0
                    && getsockname(listener, address.baseAddress!, &length) == 0
            }
        }
        guard bound, let url = URL(string: "http://127.0.0.1:\(UInt16(bigEndian: address.sin_port))") else {
            throw POSIXError(.EADDRNOTAVAIL)
        }
        self.url = url
        Thread.detachNewThread {
            while case let client = accept(listener, nil, nil), client >= 0 {
                Self.answer(client, pieces, pause)
            }
        }
    }

    private static func answer(_ client: Int32, _ pieces: [[UInt8]], _ pause: TimeInterval) {
        var request = [UInt8](repeating: 0, count: 65536)
        _ = recv(client, &request, request.count, 0)
        for piece in pieces {
            _ = send(client, piece, piece.count, 0)
            Thread.sleep(forTimeInterval: pause)
        }
        shutdown(client, Int32(SHUT_WR))
        while recv(client, &request, request.count, 0) > 0 {}  // closed with bytes unread, a connection is reset
        close(client)
    }
}
