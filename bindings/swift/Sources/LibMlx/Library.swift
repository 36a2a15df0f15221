internal import CLibMlx
import Foundation

/// The C functions: JSON in, JSON out, errors thrown, every string released.
enum Library {
    typealias Answer = UnsafeMutablePointer<CChar>

    /// Makes a blocking call on a thread of its own: Swift's cooperative threads are as few as the cores, and a queue's
    /// may be all taken by other calls when the one comes that would end them.
    static func call<Value: Decodable & Sendable>(
        _ function: @escaping @Sendable () -> Answer?
    ) async throws(LibMlxError) -> Value {
        let result: Result<Value, LibMlxError> = await withCheckedContinuation { continuation in
            let thread = Thread { continuation.resume(returning: decode(function())) }
            thread.name = "lib_mlx call"
            thread.qualityOfService = .userInitiated
            thread.start()
        }
        return try result.get()
    }

    /// Makes a call that never blocks.
    static func callNow<Value: Decodable>(_ function: () -> Answer?) throws(LibMlxError) -> Value {
        try decode(function()).get()
    }

    /// The JSON of a configuration, with `extra` keys.
    static func json(
        _ config: some Encodable, adding extra: [String: JSONValue] = [:]
    ) throws(LibMlxError) -> String {
        do {
            let encoder = JSONEncoder()
            encoder.keyEncodingStrategy = .convertToSnakeCase
            return String(decoding: try encoder.encode(Extended(config, extra)), as: UTF8.self)
        } catch {
            throw LibMlxError(code: .invalidArgument, message: "The configuration cannot be written as JSON: \(error)")
        }
    }

    private static func decode<Value: Decodable>(_ answer: Answer?) -> Result<Value, LibMlxError> {
        guard let answer else {
            return .failure(LibMlxError(code: .insufficientMemory, message: "The process has run out of memory."))
        }
        defer { lib_mlx_free(answer) }
        let json = Data(bytesNoCopy: answer, count: strlen(answer), deallocator: .none)
        do {
            return try JSONDecoder().decode(Outcome<Value>.self, from: json).result
        } catch {
            return .failure(LibMlxError(code: .internal, message: "The library's answer was not understood: \(error)"))
        }
    }
}

/// `{"ok": true, …}` or `{"ok": false, "error": …}`.
private struct Outcome<Value: Decodable>: Decodable {
    let result: Result<Value, LibMlxError>

    private enum CodingKeys: CodingKey {
        case ok, error
    }

    init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        if try container.decode(Bool.self, forKey: .ok) {
            result = .success(try Value(from: decoder))
        } else {
            result = .failure(try container.decode(LibMlxError.self, forKey: .error))
        }
    }
}

/// An answer without anything of interest.
struct Done: Decodable, Sendable {}
