/// One event of a stream.
public struct ServerSentEvent: Hashable, Sendable {
    /// The event's name; "message" if it has none.
    public let name: String
    /// Its lines of data, joined by line feeds.
    public let data: String
    /// The last id that the stream has given so far.
    public let id: String

    public init(name: String = "message", data: String, id: String = "") {
        self.name = name
        self.data = data
        self.id = id
    }
}

/// Reads an event stream as https://html.spec.whatwg.org/multipage/server-sent-events.html has it.
///
/// Bytes may be cut anywhere, inside a character or a line end too. An event that the stream's end cuts off is dropped.
public struct ServerSentEventParser: Sendable {
    /// How many milliseconds a client shall wait before it connects again, if the stream has said so.
    public private(set) var retry: Int?

    private var line: [UInt8] = []
    private var afterCarriageReturn = false
    private var atStart = true
    private var name = ""
    private var data: [String] = []
    private var id = ""

    public init() {}

    /// Takes the stream's next bytes in and returns the events that they complete.
    public mutating func append(_ bytes: some Sequence<UInt8>) -> [ServerSentEvent] {
        var events: [ServerSentEvent] = []
        for byte in bytes {
            let endsCarriageReturn = afterCarriageReturn && byte == UInt8(ascii: "\n")
            afterCarriageReturn = byte == UInt8(ascii: "\r")
            if endsCarriageReturn { continue }
            if byte == UInt8(ascii: "\n") || afterCarriageReturn {
                if let event = endLine() { events.append(event) }
            } else {
                line.append(byte)
            }
        }
        return events
    }

    private mutating func endLine() -> ServerSentEvent? {
        defer { line.removeAll(keepingCapacity: true) }
        if atStart {
            atStart = false
            let byteOrderMark: [UInt8] = [0xEF, 0xBB, 0xBF]
            if line.starts(with: byteOrderMark) { line.removeFirst(byteOrderMark.count) }
        }
        if line.isEmpty { return dispatch() }
        let colon = line.firstIndex(of: UInt8(ascii: ":")) ?? line.endIndex
        var value = line[colon...].dropFirst()
        if value.first == UInt8(ascii: " ") { value = value.dropFirst() }
        take(field: String(decoding: line[..<colon], as: UTF8.self), value: String(decoding: value, as: UTF8.self))
        return nil
    }

    /// A comment is a field without a name, which is unknown like any other.
    private mutating func take(field: String, value: String) {
        switch field {
        case "event": name = value
        case "data": data.append(value)
        case "id" where !value.utf8.contains(0): id = value
        case "retry" where !value.isEmpty && value.utf8.allSatisfy((UInt8(ascii: "0")...UInt8(ascii: "9")).contains):
            retry = Int(value)
        default: break
        }
    }

    private mutating func dispatch() -> ServerSentEvent? {
        defer {
            name = ""
            data = []
        }
        guard !data.isEmpty else { return nil }
        return ServerSentEvent(name: name.isEmpty ? "message" : name, data: data.joined(separator: "\n"), id: id)
    }
}
