import Foundation

/// Where and how to serve a model, and others. What is nil is left to the library, whose defaults are named here.
public struct ServerConfig: Codable, Hashable, Sendable {
    /// The address to bind; "127.0.0.1" by default.
    public var host: String?
    /// The port to bind; 0, the default, picks a free one.
    public var port: Int?
    /// Path of a Unix socket to listen on instead, open to this user alone. ``LibMlxClient`` cannot reach it.
    public var uds: String?
    /// The name clients use; the model's own by default.
    public var modelID: String?
    /// Requests in flight at once, running and waiting; one more is refused with ``LibMlxError/Code/queueFull``. 64 by
    /// default.
    public var queueLimit: Int?
    /// What requests do while the model is suspended; ``SuspendedRequests/wait`` by default.
    public var suspendedRequests: SuspendedRequests?
    /// What clients must send; "auto" makes one up, which ``ServerStatus/apiKey`` tells once. None by default.
    public var apiKey: String?
    /// Further names that the Host header may have, beside addresses, localhost and ``host``; "*" is any.
    public var allowedHosts: [String]?
    /// Web pages that may call the server, such as "https://example.org"; "*" is any. None by default.
    public var allowedOrigins: [String]?
    /// Which http(s) URLs of images are fetched; ``ImageUrls/none`` by default.
    public var imageUrls: ImageUrls?
    /// Folders from which requests may name images, by path or file URL; none by default.
    public var allowedImagePaths: [String]?
    /// A larger request body is refused with ``LibMlxError/Code/payloadTooLarge``; 32 MiB by default.
    public var bodyLimitBytes: Int?
    /// Further models, loaded at their first use.
    public var models: [ServedModelConfig]?
    /// A TOML file with tables `[[models]]` of the same keys in snake_case.
    public var modelsFile: String?
    /// Serve every model of the store and the Hugging Face cache; false by default.
    public var modelStore: Bool?
    /// Unload a further model after so many seconds without a request; never if negative, and by default.
    public var keepAlive: TimeInterval?
    /// The most bytes that all models may take; those used least recently go first. What the machine has by default.
    public var memoryLimitBytes: Int?
    /// Bounds that a request's `profile` names, beside the built-in "fast", "balanced" and "quality" or in their place.
    public var profiles: [String: Profile]?

    public init() {}
}

/// A further model of a server, loaded when it is first asked for. The keys are explained at ``LoadConfig``.
public struct ServedModelConfig: Codable, Hashable, Sendable {
    public var modelPath: String
    /// The name clients use; the last part of ``modelPath`` by default.
    public var modelID: String?
    public var revision: String?
    /// Never unload it to make room or for idleness; false by default.
    public var pinned: Bool?
    /// Unload it after so many seconds without a request, never if negative; the server's by default.
    public var keepAlive: TimeInterval?

    public var thinkingEnabled: Bool?
    public var contextLength: Int?
    public var cpuWeights: CPUWeights?
    public var trustRemoteCode: Bool?
    public var kvBits: Int?
    public var memoryLimitBytes: Int?
    public var prefixCacheBytes: Int?
    public var prefixCachePath: String?
    public var promptLookup: Bool?
    public var draftModelPath: String?
    public var draftTokens: Int?
    public var adapterPath: String?
    public var adapters: [String: String]?
    public var generation: GenerationDefaults?
    public var lazyEncoders: Bool?
    public var minPixels: Int?
    public var maxPixels: Int?
    public var imageCacheBytes: Int?

    public init(modelPath: String) {
        self.modelPath = modelPath
    }
}

/// Bounds of the requests that name it.
public struct Profile: Codable, Hashable, Sendable {
    /// The most tokens of an answer, reasoning included.
    public var maxTokens: Int?
    /// Images are made smaller than this.
    public var maxPixels: Int?

    public init(maxTokens: Int? = nil, maxPixels: Int? = nil) {
        self.maxTokens = maxTokens
        self.maxPixels = maxPixels
    }
}

/// Which http(s) URLs of images a server fetches.
public enum ImageUrls: String, Codable, Sendable {
    case none
    /// Those at public addresses.
    case `public`
    /// Those of this machine and its network too, which lets clients make the server ask there.
    case any
}

/// What a server does with requests while its model is suspended.
public enum SuspendedRequests: String, Codable, Sendable {
    /// They wait until the model is resumed.
    case wait
    /// They are refused with ``LibMlxError/Code/suspended``.
    case fail
}
