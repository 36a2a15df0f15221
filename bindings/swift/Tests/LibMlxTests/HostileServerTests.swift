import Foundation
import LibMlx
import Testing

/// What the client makes of servers that lib_mlx is not.
struct HostileServerTests {
    @Test("Each event is read when it arrives, not when the answer ends.")
    func eventsArriveOneByOne() async throws {
        let server = try CannedServer([Self.head] + (0..<5).map { Self.chunk("\($0)") } + [Self.done], pause: 0.1)
        let clock = ContinuousClock()
        var arrivals: [ContinuousClock.Instant] = []
        for try await _ in try Self.stream(server) { arrivals.append(clock.now) }
        #expect(arrivals.count == 5)
        #expect(zip(arrivals, arrivals.dropFirst()).allSatisfy { $1 - $0 > .milliseconds(50) })
    }

    @Test("Bytes that come one at a time, inside characters too, make the same text.")
    func splitCharacters() async throws {
        let body = Self.head + Self.chunk("日本語 👩\u{200D}💻") + Self.done
        let server = try CannedServer(body.map { [$0] })
        var text = ""
        for try await chunk in try Self.stream(server) { text += chunk.text }
        #expect(text == "日本語 👩\u{200D}💻")
    }

    @Test("A stream that is cut off before its end is a lost connection, not a whole answer.")
    func cutOff() async throws {
        let server = try CannedServer([Self.head, Self.chunk("only half")])
        var text = ""
        let error = await #expect(throws: URLError.self) {
            for try await chunk in try Self.stream(server) { text += chunk.text }
        }
        #expect(error?.code == .networkConnectionLost)
        #expect(text == "only half")
    }

    @Test("An error event in mid-stream is the server's error.")
    func errorInMidStream() async throws {
        let event = #"data: {"error": {"message": "no more room", "code": "insufficient_memory"}}"# + "\n\n"
        let server = try CannedServer([Self.head, Self.chunk("x"), Array(event.utf8), Self.done])
        let error = await refusal { for try await _ in try Self.stream(server) {} }
        #expect(error?.code == .insufficientMemory)
        #expect(error?.message == "no more room")
        #expect(error?.status == 200)
    }

    @Test("An event that is no chunk is a decoding error; an answer that is no JSON too.")
    func nonsense() async throws {
        let server = try CannedServer([Self.head, Array("data: {\"id\": 7}\n\n".utf8), Self.done])
        await #expect(throws: DecodingError.self) { for try await _ in try Self.stream(server) {} }
        await #expect(throws: DecodingError.self) { try await LibMlxClient(baseURL: server.url).health() }
    }

    @Test("A refusal in another shape keeps its status.")
    func foreignRefusal() async throws {
        let server = try CannedServer([Array("HTTP/1.1 502 Bad\r\nContent-Length: 3\r\n\r\noh!".utf8)])
        let error = await refusal { for try await _ in try Self.stream(server) {} }
        #expect(error?.status == 502)
        #expect(error?.code == .internal)
    }

    @Test("A server that is not there is a URL error.")
    func nobodyThere() async throws {
        let client = LibMlxClient(baseURL: try #require(URL(string: "http://127.0.0.1:1")))
        await #expect(throws: URLError.self) {
            for try await _ in try client.chatCompletionStream(ChatRequest(messages: [])) {}
        }
    }

    private static let head = Array(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n".utf8)
    private static let done = Array("data: [DONE]\n\n".utf8)

    private static func chunk(_ text: String) -> [UInt8] {
        let json = #"{"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "\#(text)"}}]}"#
        return Array("data: \(json)\n\n".utf8)
    }

    private static func stream(_ server: CannedServer) throws -> AsyncThrowingStream<ChatChunk, any Error> {
        try LibMlxClient(baseURL: server.url).chatCompletionStream(ChatRequest(messages: [.user("hello")]))
    }
}
