import Foundation

/// A failure that the library reports.
///
/// Decide by ``code``, which is stable; show ``message`` and ``hint`` to people.
public struct LibMlxError: Error, Hashable, Sendable, Codable {
    /// What kind of failure it is. New ones may appear: a `switch` needs a `default`.
    public struct Code: RawRepresentable, Hashable, Sendable, Codable {
        public let rawValue: String

        public init(rawValue: String) {
            self.rawValue = rawValue
        }
    }

    public let code: Code
    /// What went wrong and why.
    public let message: String
    /// What to do about it; may be empty.
    public let hint: String

    public init(code: Code, message: String, hint: String = "") {
        self.code = code
        self.message = message
        self.hint = hint
    }
}

extension LibMlxError: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { message }
    public var recoverySuggestion: String? { hint.isEmpty ? nil : hint }
    public var description: String { "\(code.rawValue): \(message)\(hint.isEmpty ? "" : " \(hint)")" }
}

extension LibMlxError.Code {
    // Of the C functions.
    /// The configuration is not a JSON object in UTF-8.
    public static let invalidJSON = Self(rawValue: "invalid_json")
    /// A key is unknown, missing, or has a wrong type or value.
    public static let invalidArgument = Self(rawValue: "invalid_argument")
    /// No model is loaded under that handle.
    public static let invalidHandle = Self(rawValue: "invalid_handle")
    /// No model of that name or path.
    public static let modelNotFound = Self(rawValue: "model_not_found")
    /// The checkpoint's architecture or format is not supported.
    public static let unsupportedModel = Self(rawValue: "unsupported_model")
    /// Well-formed, but this model or version cannot honour it.
    public static let unsupportedFeature = Self(rawValue: "unsupported_feature")
    /// The checkpoint's files are damaged or incomplete.
    public static let corruptModel = Self(rawValue: "corrupt_model")
    /// The model or request does not fit into memory; also: the process has run out of it.
    public static let insufficientMemory = Self(rawValue: "insufficient_memory")
    /// There is no room on the disk for what a load has to write.
    public static let diskFull = Self(rawValue: "disk_full")
    /// The load was cancelled by an unload, a shutdown or the cancellation of the task that awaited it.
    public static let loadCancelled = Self(rawValue: "load_cancelled")
    /// The model is not ready yet.
    public static let modelLoading = Self(rawValue: "model_loading")
    /// The model is suspended, and its server was started to refuse requests meanwhile.
    public static let suspended = Self(rawValue: "suspended")
    /// The child process that a model with ``Isolation/process`` ran in has died.
    public static let engineDied = Self(rawValue: "engine_died")
    /// The requested port or socket is taken.
    public static let addressInUse = Self(rawValue: "address_in_use")
    /// The server could not start.
    public static let serverStartFailed = Self(rawValue: "server_start_failed")
    /// The server or the process is stopping.
    public static let shuttingDown = Self(rawValue: "shutting_down")
    /// No usable Python, or `LIB_MLX_HOME` holds none.
    public static let pythonNotFound = Self(rawValue: "python_not_found")
    /// A Python was found, but of a version this library was not built for.
    public static let pythonMismatch = Self(rawValue: "python_mismatch")
    /// Python or one of its packages failed to start.
    public static let pythonInit = Self(rawValue: "python_init")
    /// Called in a child made by `fork()`.
    public static let forked = Self(rawValue: "forked")
    /// A defect in lib_mlx or in this package.
    public static let `internal` = Self(rawValue: "internal")

    // Of the server alone.
    /// The prompt does not fit into the model's context.
    public static let contextLengthExceeded = Self(rawValue: "context_length_exceeded")
    /// The response that a request continues is not kept (any more).
    public static let previousResponseNotFound = Self(rawValue: "previous_response_not_found")
    /// The API key is missing or wrong.
    public static let unauthorized = Self(rawValue: "unauthorized")
    /// No such route or object.
    public static let notFound = Self(rawValue: "not_found")
    /// The model is answering requests and cannot be unloaded now.
    public static let modelBusy = Self(rawValue: "model_busy")
    /// The request's body is over the server's limit.
    public static let payloadTooLarge = Self(rawValue: "payload_too_large")
    /// The server finishes what runs and takes nothing new.
    public static let draining = Self(rawValue: "draining")
    /// As many requests are in flight as the server allows.
    public static let queueFull = Self(rawValue: "queue_full")
    /// The request was cancelled before it finished.
    public static let cancelled = Self(rawValue: "cancelled")
}
