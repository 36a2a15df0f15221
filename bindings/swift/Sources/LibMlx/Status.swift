import Foundation

/// A model and its server at one moment.
public struct Status: Codable, Hashable, Sendable {
    public let model: ModelStatus
    public let server: ServerStatus
}

/// A model at one moment.
public struct ModelStatus: Codable, Hashable, Sendable {
    public let state: ModelState
    /// The name clients use.
    public let id: String
    public let path: String
    /// From 0 to 1; meaningful while the model loads.
    public let progress: Double
    /// What a load is doing.
    public let stage: String
    /// Why the model failed.
    public let error: LibMlxError?
    /// Upper bound in tokens of prompt plus completion; this and the rest are nil until the model is loaded.
    public let contextLength: Int?
    public let device: Device?
    /// How the weights are kept in memory.
    public let weights: WeightKind?
    /// The library that is used on the CPU in place of MLX's own slow one; nil: MLX as shipped.
    public let blas: String?
    /// Those of images: "waiting" for their first use, or "loaded"; nil: it has none.
    public let encoders: String?

    private enum CodingKeys: String, CodingKey {
        case state = "status"
        case id = "model_id"
        case path = "model_path"
        case progress, stage, error
        case contextLength = "context_length"
        case device, weights, blas, encoders
    }
}

/// A server at one moment; the address is set while it runs.
public struct ServerStatus: Codable, Hashable, Sendable {
    public let state: ServerState
    public let host: String?
    public let port: Int?
    /// The server's root: "/v1/chat/completions" is below it.
    public let baseURL: URL?
    /// The name clients use for the model.
    public let modelID: String?
    /// The Unix socket it listens on, if it does; ``host`` and ``port`` mean nothing then.
    public let uds: String?
    /// Told once, in the answer to the start.
    public let apiKey: String?

    private enum CodingKeys: String, CodingKey {
        case state = "status"
        case host, port
        case baseURL = "base_url"
        case modelID = "model_id"
        case uds
        case apiKey = "api_key"
    }
}

/// How far a load is.
public struct LoadProgress: Hashable, Sendable {
    /// From 0 to 1.
    public let fraction: Double
    /// What is being done.
    public let stage: String
}

/// The process's resident memory in bytes around an unload.
public struct MemoryReport: Codable, Hashable, Sendable {
    public let beforeBytes: Int
    public let afterBytes: Int

    private enum CodingKeys: String, CodingKey {
        case beforeBytes = "before_bytes"
        case afterBytes = "after_bytes"
    }
}

/// The library that was found at run time.
public struct LibraryVersion: Codable, Hashable, Sendable {
    public let version: String
    public let abiVersion: Int
    /// The Python that is in use or would be started; nil where none is found.
    public let pythonVersion: String?
    /// The MLX installed beside it; nil where unknown.
    public let mlxVersion: String?

    private enum CodingKeys: String, CodingKey {
        case version
        case abiVersion = "abi_version"
        case pythonVersion = "python_version"
        case mlxVersion = "mlx_version"
    }
}

/// What a model is doing. New states may appear.
public struct ModelState: RawRepresentable, Hashable, Sendable, Codable {
    public let rawValue: String

    public init(rawValue: String) {
        self.rawValue = rawValue
    }

    public static let loading = Self(rawValue: "loading")
    public static let ready = Self(rawValue: "ready")
    public static let suspended = Self(rawValue: "suspended")
    /// Busy with one step for a minute or more.
    public static let stalled = Self(rawValue: "stalled")
    public static let unloading = Self(rawValue: "unloading")
    /// ``ModelStatus/error`` says why.
    public static let failed = Self(rawValue: "failed")
}

/// What a server is doing. New states may appear.
public struct ServerState: RawRepresentable, Hashable, Sendable, Codable {
    public let rawValue: String

    public init(rawValue: String) {
        self.rawValue = rawValue
    }

    public static let stopped = Self(rawValue: "stopped")
    public static let starting = Self(rawValue: "starting")
    public static let running = Self(rawValue: "running")
    public static let stopping = Self(rawValue: "stopping")
}

/// Where a model runs. New ones may appear.
public struct Device: RawRepresentable, Hashable, Sendable, Codable {
    public let rawValue: String

    public init(rawValue: String) {
        self.rawValue = rawValue
    }

    public static let cpu = Self(rawValue: "cpu")
    public static let gpu = Self(rawValue: "gpu")
}

/// How weights are kept in memory. New ways may appear.
public struct WeightKind: RawRepresentable, Hashable, Sendable, Codable {
    public let rawValue: String

    public init(rawValue: String) {
        self.rawValue = rawValue
    }

    public static let float32 = Self(rawValue: "float32")
    public static let float16 = Self(rawValue: "float16")
    public static let bfloat16 = Self(rawValue: "bfloat16")
    public static let quantized = Self(rawValue: "quantized")
}
