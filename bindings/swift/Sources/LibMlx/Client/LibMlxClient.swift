import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Talks to a model's server in OpenAI's dialect.
///
/// Failures are ``APIError`` where the server reports them, `URLError` where it cannot be reached or goes away, and
/// `CancellationError`. There are no timeouts: a model may take its time. Linux's `URLSession` obeys the environment
/// variable `http_proxy`, if there is one; `no_proxy=127.0.0.1` keeps it from the server.
///
/// The connection of a stream is closed, and the model stops working on it, when the task that reads it is cancelled,
/// which ends the stream without an error, or the loop that reads it is left. What is not read yet is kept in memory.
public struct LibMlxClient: Sendable {
    private let baseURL: URL
    private let apiKey: String?

    /// - Parameters:
    ///   - baseURL: the server's root, as ``ServerStatus/baseURL`` has it.
    ///   - apiKey: what the server was started with.
    public init(baseURL: URL, apiKey: String? = nil) {
        self.baseURL = baseURL
        self.apiKey = apiKey
    }

    /// A client of a server that was just started; nil if it listens on a Unix socket.
    public init?(_ server: ServerStatus) {
        guard let baseURL = server.baseURL, server.uds == nil else { return nil }
        self.init(baseURL: baseURL, apiKey: server.apiKey)
    }

    /// The models that can be asked for, loaded or not.
    public func listModels() async throws -> [ModelInfo] {
        struct List: Decodable {
            let data: [ModelInfo]
        }
        let list: List = try await answer(get("v1/models"))
        return list.data
    }

    /// What the server is doing.
    public func health() async throws -> Health {
        try await answer(get("health"))
    }

    /// A whole answer to a conversation.
    public func chatCompletion(_ request: ChatRequest) async throws -> ChatCompletion {
        try await answer(post("v1/chat/completions", request, request.extra))
    }

    /// An answer to a conversation in pieces, as the model writes it.
    public func chatCompletionStream(_ request: ChatRequest) throws -> AsyncThrowingStream<ChatChunk, any Error> {
        events(try post("v1/chat/completions", request, request.extra.adding(["stream": true])))
    }

    /// A response as a stream of events; the last one carries the whole of it.
    public func responseStream(_ request: ResponseRequest) throws -> AsyncThrowingStream<ResponseEvent, any Error> {
        events(try post("v1/responses", request, request.extra.adding(["stream": true])))
    }

    // MARK: - Requests

    private func get(_ path: String) -> URLRequest {
        var request = URLRequest(url: baseURL.appendingPathComponent(path))
        if let apiKey {
            request.setValue("Bearer \(apiKey)", forHTTPHeaderField: "Authorization")
        }
        return request
    }

    private func post(_ path: String, _ body: some Encodable, _ extra: [String: JSONValue]) throws -> URLRequest {
        var request = get(path)
        request.httpMethod = "POST"
        request.setValue("application/json", forHTTPHeaderField: "Content-Type")
        request.httpBody = try JSONEncoder().encode(Extended(body, extra))
        return request
    }

    // MARK: - Answers

    private func answer<Answer: Decodable>(_ request: URLRequest) async throws -> Answer {
        var body = Data()
        for try await data in HTTPExchange.send(request) {
            body.append(data)
        }
        try Task.checkCancellation()  // a stream whose reader is cancelled just ends
        return try JSONDecoder().decode(Answer.self, from: body)
    }

    /// The stream's events up to `[DONE]`; one without it was cut off.
    private func events<Event: Decodable & Sendable>(_ request: URLRequest) -> AsyncThrowingStream<Event, any Error> {
        AsyncThrowingStream { continuation in
            let reading = Task {
                do {
                    var parser = ServerSentEventParser()
                    for try await data in HTTPExchange.send(request) {
                        for event in parser.append(data) {
                            if event.data == "[DONE]" { return continuation.finish() }
                            continuation.yield(try decode(event.data))
                        }
                    }
                    throw URLError(.networkConnectionLost)
                } catch {
                    // Like any stream, a cancelled one just ends.
                    continuation.finish(throwing: Task.isCancelled ? nil : error)
                }
            }
            continuation.onTermination = { _ in reading.cancel() }
        }
    }

    private func decode<Event: Decodable>(_ text: String) throws -> Event {
        let json = Data(text.utf8)
        do {
            return try JSONDecoder().decode(Event.self, from: json)
        } catch {
            throw APIError(event: json) ?? error
        }
    }
}

extension [String: JSONValue] {
    fileprivate func adding(_ other: Self) -> Self {
        merging(other) { _, new in new }
    }
}
