import Foundation

/// A failure that the server reports.
///
/// Decide by ``code``, which is stable; show ``message`` to people.
public struct APIError: Error, Hashable, Sendable {
    /// The HTTP status; 200 where a stream that had begun failed.
    public let status: Int
    /// ``LibMlxError/Code/internal`` where the answer is none of lib_mlx's.
    public let code: LibMlxError.Code
    /// What went wrong, and what to do about it.
    public let message: String
    /// OpenAI's kind of error, such as "invalid_request_error".
    public let type: String?
    /// The field of the request that is wrong, if one is.
    public let param: String?
}

extension APIError {
    /// The error of an answer.
    init(status: Int, body: Data) {
        let message = "The server answered with the HTTP status \(status)."
        let unknown = Self(status: status, code: .internal, message: message, type: nil, param: nil)
        self = Self(status: status, body) ?? unknown
    }

    /// The error of an event in mid-stream; nil if it is no error.
    init?(event: Data) {
        self.init(status: 200, event)
    }

    private init?(status: Int, _ json: Data) {
        guard let wire = try? JSONDecoder().decode(Wire.self, from: json).error else { return nil }
        self.status = status
        code = wire.code ?? .internal
        message = wire.message
        type = wire.type
        param = wire.param
    }

    private struct Wire: Decodable {
        let error: Object

        struct Object: Decodable {
            let message: String
            let type: String?
            let param: String?
            let code: LibMlxError.Code?
        }
    }
}

extension APIError: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { message }
    public var description: String { "\(code.rawValue) (HTTP \(status)): \(message)" }
}
