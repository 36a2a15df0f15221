import Foundation

/// What to load and how. What is nil is left to the library, whose defaults are named here.
public struct LoadConfig: Codable, Hashable, Sendable {
    /// A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache.
    public var modelPath: String
    /// The name clients use; the directory's name by default.
    public var modelID: String?
    /// Branch, tag or commit of a Hugging Face repository.
    public var revision: String?
    /// Load image and audio encoders at their first use; true by default.
    public var lazyEncoders: Bool?
    /// Where engine and server run; ``Isolation/inProcess`` by default.
    public var isolation: Isolation?
    /// A file to write the library's messages to.
    public var logFile: String?
    /// The least important messages that are written there.
    public var logLevel: LogLevel?

    /// Whether the chat template may open a reasoning block; true by default, and a request can override it.
    public var thinkingEnabled: Bool?
    /// Upper bound in tokens of prompt plus completion; the model's own by default.
    public var contextLength: Int?
    /// How weights are kept where MLX runs on the CPU; ``CPUWeights/auto`` by default.
    public var cpuWeights: CPUWeights?
    /// Run the code that a checkpoint brings; false by default: such a checkpoint is refused.
    public var trustRemoteCode: Bool?
    /// Keep keys and values of the cache in 4 or 8 bits: less memory, some loss, and requests decode in turns.
    public var kvBits: Int?
    /// The most bytes that weights and caches may take together; what the machine has free by default.
    public var memoryLimitBytes: Int?
    /// The most bytes that are kept of past requests; 0 keeps nothing. By default 2 GiB or a tenth of the machine's
    /// memory, whichever is less.
    public var prefixCacheBytes: Int?
    /// A directory that keeps them across restarts.
    public var prefixCachePath: String?
    /// Guess that what followed the last tokens before follows again, and check several at once; false by default.
    public var promptLookup: Bool?
    /// A smaller model with the same tokens, whose guesses are checked likewise.
    public var draftModelPath: String?
    /// The most tokens that are guessed at once; 4 by default.
    public var draftTokens: Int?
    /// The directory of an adapter to begin with, or a name of ``adapters``.
    public var adapterPath: String?
    /// Directories of adapters by name, which can take each other's place while the model serves.
    public var adapters: [String: String]?
    /// What requests get that leave it out.
    public var generation: GenerationDefaults?
    /// Images are made larger than this before the model sees them.
    public var minPixels: Int?
    /// Images are made smaller than this: fewer tokens, less detail.
    public var maxPixels: Int?
    /// The most that is kept of encoded images; 0 keeps none. By default 256 MiB or a fiftieth of the machine's memory.
    public var imageCacheBytes: Int?

    public init(modelPath: String) {
        self.modelPath = modelPath
    }
}

/// What a request gets that leaves it out. What is nil is the checkpoint's own.
public struct GenerationDefaults: Codable, Hashable, Sendable {
    /// The most tokens of an answer, reasoning included; up to the context's end by default.
    public var maxTokens: Int?
    /// 0 is greedy.
    public var temperature: Double?
    /// Draw from the likeliest tokens that have this much of the probability together.
    public var topP: Double?
    /// Draw from so many of the likeliest; 0 is off.
    public var topK: Int?
    /// Draw from those at least this likely, relative to the likeliest.
    public var minP: Double?
    /// Over prompt and output; 1 is off.
    public var repetitionPenalty: Double?

    public init() {}
}

/// How weights are kept where MLX runs on the CPU.
public enum CPUWeights: String, Codable, Sendable {
    /// Dequantise only what the library cannot multiply with as it is stored: the fastest.
    case auto
    /// Dequantise to float32: 8 times the memory of 4-bit weights.
    case float32
    /// Keep quantised weights so.
    case quantized
}

/// Where engine and server of a model run.
public enum Isolation: String, Codable, Sendable {
    /// In this process.
    case inProcess = "none"
    /// In a child process of the library's. If that dies, the model is ``ModelState/failed`` with
    /// ``LibMlxError/Code/engineDied``; the app lives on.
    case process
}

/// How important a message of the library is.
public enum LogLevel: String, Codable, Sendable {
    case debug, info, warning, error
}
