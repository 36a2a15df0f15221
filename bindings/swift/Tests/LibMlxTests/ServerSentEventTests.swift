import LibMlx
import Testing

/// The parser against https://html.spec.whatwg.org/multipage/server-sent-events.html.
struct ServerSentEventTests {
    @Test(
        "Line ends, fields, comments and spaces are read as the standard has it.",
        arguments: [
            ("data: a\n\n", [ServerSentEvent(data: "a")]),
            ("data: a\r\rdata: b\r\n\r\ndata: c\n\n", ["a", "b", "c"].map { ServerSentEvent(data: $0) }),
            ("data: a\ndata:b\ndata\n\n", [ServerSentEvent(data: "a\nb\n")]),
            ("data:  a: b\n\n", [ServerSentEvent(data: " a: b")]),
            (
                "event: ping\ndata: {}\n\ndata: x\n\n",
                [ServerSentEvent(name: "ping", data: "{}"), ServerSentEvent(data: "x")]
            ),
            (": keep-alive\n\n:\n\ndata: a\n: in between\n\n", [ServerSentEvent(data: "a")]),
            ("event: lonely\n\ndata: a\n\n", [ServerSentEvent(data: "a")]),
            ("data\n\n", [ServerSentEvent(data: "")]),
            (
                "data: a\nid: 1\n\ndata: b\n\nid\ndata: c\n\n",
                zip("abc", ["1", "1", ""]).map { ServerSentEvent(data: String($0), id: $1) }
            ),
            ("id: 1\0\ndata: a\n\n", [ServerSentEvent(data: "a")]),
            ("nonsense: a\ndatax: b\n data: c\n\n", []),
            ("\u{FEFF}data: a\n\n", [ServerSentEvent(data: "a")]),
            ("data: cut off\n", []),
            ("data: [DONE]\n\n", [ServerSentEvent(data: "[DONE]")]),
            ("data: é日👩\u{200D}💻\n\n", [ServerSentEvent(data: "é日👩\u{200D}💻")]),
        ])
    func standard(stream: String, events: [ServerSentEvent]) {
        var parser = ServerSentEventParser()
        #expect(parser.append(stream.utf8) == events)
    }

    @Test("Wherever a stream is cut in three, inside characters and line ends too, its events are the same.")
    func anyCut() {
        let stream = Array(
            "\u{FEFF}event: a\r\ndata: é日\r\ndata: 👩\u{200D}💻\r\n\r\n:c\r\rdata: x\n\nid: 7\rdata: y\r\n\r\n".utf8)
        var whole = ServerSentEventParser()
        let events = whole.append(stream)
        #expect(events.count == 3)
        for first in stream.indices {
            for second in first...stream.count {
                var parser = ServerSentEventParser()
                let pieces = [stream[..<first], stream[first..<second], stream[second...]]
                #expect(pieces.flatMap { parser.append($0) } == events)
            }
        }
    }

    @Test("The time to connect again is taken only from digits.")
    func retry() {
        var parser = ServerSentEventParser()
        _ = parser.append("retry: 1500\nretry: 2s\nretry:\n".utf8)
        #expect(parser.retry == 1500)
    }
}
