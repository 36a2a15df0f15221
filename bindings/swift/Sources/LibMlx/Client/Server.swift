/// A model as its server lists it.
public struct ModelInfo: Decodable, Hashable, Sendable, Identifiable {
    public let id: String
    /// "ready" where it is in memory.
    public let status: String
    /// Upper bound in tokens of prompt plus completion, as far as it is known.
    public let contextLength: Int?
    /// The memory of its weights.
    public let memoryBytes: Int
    /// How many requests it is answering.
    public let requests: Int

    private enum CodingKeys: String, CodingKey {
        case id, status
        case contextLength = "context_length"
        case memoryBytes = "memory_bytes"
        case requests
    }
}

/// What a server is doing.
public struct Health: Decodable, Hashable, Sendable {
    /// "ok" where requests are answered.
    public let status: String
    /// The names of the models that are in memory.
    public let models: [String]
    /// The requests that are running or waiting.
    public let inFlight: Int
    public let uptimeSeconds: Double

    private enum CodingKeys: String, CodingKey {
        case status, models
        case inFlight = "in_flight"
        case uptimeSeconds = "uptime_s"
    }
}
