/// A conversation that the model shall continue. What is nil is left to the model and the server.
public struct ChatRequest: Encodable, Hashable, Sendable {
    /// The model's name; a server with one model may be asked without.
    public var model: String?
    public var messages: [ChatMessage]
    /// Bound on the answer in tokens, reasoning included; the context's end by default.
    public var maxTokens: Int?
    /// From 0, always the likeliest token, to 2.
    public var temperature: Double?
    public var topP: Double?
    public var seed: Int?
    /// Up to four texts at which the answer ends.
    public var stop: [String]?
    /// Functions the model may call, as OpenAI's `tools` has them.
    public var tools: [JSONValue]?
    /// "auto", "none", "required" or a function.
    public var toolChoice: JSONValue?
    /// The form of the answer, such as a JSON schema: OpenAI's `response_format`.
    public var responseFormat: JSONValue?
    /// Whether the model may reason first.
    public var thinking: Bool?
    /// Any other field that the server understands, under its name there.
    public var extra: [String: JSONValue] = [:]

    public init(model: String? = nil, messages: [ChatMessage]) {
        self.model = model
        self.messages = messages
    }

    private enum CodingKeys: String, CodingKey {
        case model, messages
        case maxTokens = "max_tokens"
        case temperature
        case topP = "top_p"
        case seed, stop, tools
        case toolChoice = "tool_choice"
        case responseFormat = "response_format"
        case thinking
    }
}

/// One message of a conversation.
public struct ChatMessage: Codable, Hashable, Sendable {
    /// "system", "user", "assistant" or "tool".
    public var role: String
    public var content: ChatContent?
    /// What the model thought before it answered.
    public var reasoning: String?
    /// The functions that an assistant's message calls.
    public var toolCalls: [ToolCall]?
    /// The call that a tool's message answers.
    public var toolCallID: String?

    public init(role: String, content: ChatContent?, toolCalls: [ToolCall]? = nil, toolCallID: String? = nil) {
        self.role = role
        self.content = content
        self.toolCalls = toolCalls
        self.toolCallID = toolCallID
    }

    public static func system(_ text: String) -> Self { Self(role: "system", content: .text(text)) }
    public static func user(_ text: String) -> Self { Self(role: "user", content: .text(text)) }
    public static func assistant(_ text: String) -> Self { Self(role: "assistant", content: .text(text)) }
    public static func tool(_ result: String, answering call: ToolCall) -> Self {
        Self(role: "tool", content: .text(result), toolCallID: call.id)
    }

    private enum CodingKeys: String, CodingKey {
        case role, content
        case reasoning = "reasoning_content"
        case toolCalls = "tool_calls"
        case toolCallID = "tool_call_id"
    }
}

/// What a message says.
public enum ChatContent: Codable, Hashable, Sendable {
    case text(String)
    /// OpenAI's content parts, for instance `["type": "image_url", …]`.
    case parts([JSONValue])

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let text = try? container.decode(String.self) {
            self = .text(text)
        } else {
            self = .parts(try container.decode([JSONValue].self))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .text(let text): try container.encode(text)
        case .parts(let parts): try container.encode(parts)
        }
    }

    /// The text, if it is nothing but text.
    public var text: String? {
        if case .text(let text) = self { text } else { nil }
    }
}

/// A function that the model calls.
public struct ToolCall: Codable, Hashable, Sendable {
    public struct Function: Codable, Hashable, Sendable {
        public let name: String
        /// JSON, as the model wrote it.
        public let arguments: String

        public init(name: String, arguments: String) {
            self.name = name
            self.arguments = arguments
        }
    }

    public let id: String
    public let type: String
    public let function: Function

    public init(id: String, function: Function) {
        self.id = id
        type = "function"
        self.function = function
    }
}

/// A whole answer.
public struct ChatCompletion: Decodable, Hashable, Sendable {
    public struct Choice: Decodable, Hashable, Sendable {
        public let index: Int
        public let message: ChatMessage
        /// "stop", "length", "tool_calls", …
        public let finishReason: String?

        private enum CodingKeys: String, CodingKey {
            case index, message
            case finishReason = "finish_reason"
        }
    }

    public let id: String
    public let model: String
    public let choices: [Choice]
    public let usage: Usage?
}

/// A piece of an answer.
public struct ChatChunk: Decodable, Hashable, Sendable {
    public struct Choice: Decodable, Hashable, Sendable {
        public let index: Int
        public let delta: Delta
        /// Set in the choice's last piece: "stop", "length", "tool_calls", …
        public let finishReason: String?

        private enum CodingKeys: String, CodingKey {
            case index, delta
            case finishReason = "finish_reason"
        }
    }

    public struct Delta: Decodable, Hashable, Sendable {
        /// Set in the choice's first piece.
        public let role: String?
        public let content: String?
        public let reasoning: String?
        /// Each call comes whole.
        public let toolCalls: [ToolCall]?

        private enum CodingKeys: String, CodingKey {
            case role, content
            case reasoning = "reasoning_content"
            case toolCalls = "tool_calls"
        }
    }

    public let id: String
    public let model: String
    public let choices: [Choice]
    /// In the last piece, if `stream_options.include_usage` asked for it.
    public let usage: Usage?

    /// The text of the first choice's piece; empty where it has none.
    public var text: String { choices.first?.delta.content ?? "" }
}

/// Counts of tokens.
public struct Usage: Decodable, Hashable, Sendable {
    public let inputTokens: Int
    public let outputTokens: Int
    public let totalTokens: Int

    private enum CodingKeys: String, CodingKey {
        case inputTokens = "input_tokens"
        case outputTokens = "output_tokens"
        case totalTokens = "total_tokens"
    }
}
