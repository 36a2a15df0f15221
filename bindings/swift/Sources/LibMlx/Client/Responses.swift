/// A request of OpenAI's Responses API. What is nil is left to the model and the server.
public struct ResponseRequest: Encodable, Hashable, Sendable {
    /// The model's name; a server with one model may be asked without.
    public var model: String?
    /// A text, or a list of items.
    public var input: JSONValue
    public var instructions: String?
    /// The response to go on from.
    public var previousResponseID: String?
    /// Bound on the answer in tokens, reasoning included; the context's end by default.
    public var maxOutputTokens: Int?
    /// From 0, always the likeliest token, to 2.
    public var temperature: Double?
    public var topP: Double?
    /// Functions the model may call.
    public var tools: [JSONValue]?
    /// "auto", "none", "required" or a function.
    public var toolChoice: JSONValue?
    /// Whether the server keeps the response, so that another one can go on from it; true by default.
    public var store: Bool?
    /// Any other field that the server understands, under its name there.
    public var extra: [String: JSONValue] = [:]

    public init(model: String? = nil, input: JSONValue) {
        self.model = model
        self.input = input
    }

    private enum CodingKeys: String, CodingKey {
        case model, input, instructions
        case previousResponseID = "previous_response_id"
        case maxOutputTokens = "max_output_tokens"
        case temperature
        case topP = "top_p"
        case tools
        case toolChoice = "tool_choice"
        case store
    }
}

/// A response as far as it is made.
public struct Response: Decodable, Hashable, Sendable {
    public struct Failure: Decodable, Hashable, Sendable {
        public let code: String
        public let message: String
    }

    public let id: String
    public let model: String
    /// "in_progress", "completed", "incomplete", "failed", …
    public let status: String
    /// Messages, reasoning and function calls.
    public let output: [JSONValue]
    public let error: Failure?
    public let usage: Usage?
}

/// An event of a response's stream, by its `type`.
public enum ResponseEvent: Hashable, Sendable {
    /// A piece of text, and the place in ``Response/output`` that it belongs to.
    public struct Delta: Decodable, Hashable, Sendable {
        public let itemID: String
        public let outputIndex: Int
        public let delta: String

        private enum CodingKeys: String, CodingKey {
            case itemID = "item_id"
            case outputIndex = "output_index"
            case delta
        }
    }

    /// An item of ``Response/output``.
    public struct Item: Decodable, Hashable, Sendable {
        public let outputIndex: Int
        public let item: JSONValue

        private enum CodingKeys: String, CodingKey {
            case outputIndex = "output_index"
            case item
        }
    }

    case created(Response)
    case inProgress(Response)
    case outputItemAdded(Item)
    case outputItemDone(Item)
    case outputTextDelta(Delta)
    case reasoningTextDelta(Delta)
    case functionCallArgumentsDelta(Delta)
    /// The three ends of a stream. What made it fail is in ``Response/error``.
    case completed(Response)
    case incomplete(Response)
    case failed(Response)
    /// An event of another type, as it came.
    case other(type: String, JSONValue)
}

extension ResponseEvent: Decodable {
    private enum CodingKeys: CodingKey {
        case type, response
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let type = try container.decode(String.self, forKey: .type)
        func response() throws -> Response { try container.decode(Response.self, forKey: .response) }
        self =
            switch type {
            case "response.created": .created(try response())
            case "response.in_progress": .inProgress(try response())
            case "response.output_item.added": .outputItemAdded(try Item(from: decoder))
            case "response.output_item.done": .outputItemDone(try Item(from: decoder))
            case "response.output_text.delta": .outputTextDelta(try Delta(from: decoder))
            case "response.reasoning_text.delta": .reasoningTextDelta(try Delta(from: decoder))
            case "response.function_call_arguments.delta": .functionCallArgumentsDelta(try Delta(from: decoder))
            case "response.completed": .completed(try response())
            case "response.incomplete": .incomplete(try response())
            case "response.failed": .failed(try response())
            default: .other(type: type, try JSONValue(from: decoder))
            }
    }
}
