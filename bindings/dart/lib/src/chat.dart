import 'json.dart';

/// A conversation that the model shall continue. What is null is left to the model and the server.
final class ChatRequest {
  const ChatRequest({
    required this.messages,
    this.model,
    this.maxTokens,
    this.temperature,
    this.topP,
    this.seed,
    this.stop,
    this.tools,
    this.toolChoice,
    this.responseFormat,
    this.thinking,
    this.extra = const {},
  });

  /// The model's name; a server with one model may be asked without.
  final String? model;
  final List<ChatMessage> messages;

  /// Bound on the answer in tokens, reasoning included; the context's end by default.
  final int? maxTokens;

  /// From 0, always the likeliest token, to 2.
  final double? temperature;
  final double? topP;
  final int? seed;

  /// Up to four texts at which the answer ends.
  final List<String>? stop;

  /// Functions the model may call, as OpenAI's `tools` has them.
  final List<Json>? tools;

  /// `auto`, `none`, `required` or a function.
  final Object? toolChoice;

  /// The form of the answer, such as a JSON schema: OpenAI's `response_format`.
  final Json? responseFormat;

  /// Whether the model may reason first.
  final bool? thinking;

  /// Any other field that the server understands, under its name there.
  final Json extra;

  Json toJson() => withoutNulls({
        'model': model,
        'messages': [for (final message in messages) message.toJson()],
        'max_tokens': maxTokens,
        'temperature': temperature,
        'top_p': topP,
        'seed': seed,
        'stop': stop,
        'tools': tools,
        'tool_choice': toolChoice,
        'response_format': responseFormat,
        'thinking': thinking,
        ...extra,
      });
}

/// One message of a conversation.
final class ChatMessage {
  const ChatMessage(this.role, this.content,
      {this.reasoning, this.toolCalls, this.toolCallId});

  const ChatMessage.system(String text) : this('system', text);
  const ChatMessage.user(String text) : this('user', text);
  const ChatMessage.assistant(String text) : this('assistant', text);
  ChatMessage.tool(String result, {required ToolCall answering})
      : this('tool', result, toolCallId: answering.id);

  ChatMessage.fromJson(Json json)
      : role = json['role']! as String,
        content = json['content'],
        reasoning = json['reasoning_content'] as String?,
        toolCalls = _toolCalls(json['tool_calls']),
        toolCallId = json['tool_call_id'] as String?;

  /// `system`, `user`, `assistant` or `tool`.
  final String role;

  /// A text, or a list of OpenAI's content parts.
  final Object? content;

  /// What the model thought before it answered.
  final String? reasoning;

  /// The functions that an assistant's message calls.
  final List<ToolCall>? toolCalls;

  /// The call that a tool's message answers.
  final String? toolCallId;

  /// [content], if it is a text.
  String? get text => switch (content) { final String text => text, _ => null };

  Json toJson() => withoutNulls({
        'role': role,
        'content': content,
        'reasoning_content': reasoning,
        'tool_calls': toolCalls?.map((call) => call.toJson()).toList(),
        'tool_call_id': toolCallId,
      });
}

/// A function that the model calls.
final class ToolCall {
  const ToolCall(this.id, this.name, this.arguments);

  ToolCall.fromJson(Json json)
      : id = json['id']! as String,
        name = (json['function']! as Json)['name']! as String,
        arguments = (json['function']! as Json)['arguments']! as String;

  final String id;
  final String name;

  /// JSON, as the model wrote it.
  final String arguments;

  Json toJson() => {
        'id': id,
        'type': 'function',
        'function': {'name': name, 'arguments': arguments},
      };
}

List<ToolCall>? _toolCalls(Object? calls) =>
    calls == null ? null : objects(calls).map(ToolCall.fromJson).toList();

/// A whole answer.
final class ChatCompletion {
  ChatCompletion.fromJson(Json json)
      : id = json['id']! as String,
        model = json['model']! as String,
        choices = objects(json['choices']).map(ChatChoice.fromJson).toList(),
        usage = Usage.maybe(json['usage']);

  final String id;
  final String model;
  final List<ChatChoice> choices;
  final Usage? usage;

  /// The text of the first choice; empty where it has none.
  String get text => choices.firstOrNull?.message.text ?? '';
}

/// One of an answer's choices.
final class ChatChoice {
  ChatChoice.fromJson(Json json)
      : index = json['index']! as int,
        message = ChatMessage.fromJson(json['message']! as Json),
        finishReason = json['finish_reason'] as String?;

  final int index;
  final ChatMessage message;

  /// `stop`, `length`, `tool_calls`, …
  final String? finishReason;
}

/// A piece of an answer.
final class ChatChunk {
  ChatChunk.fromJson(Json json)
      : id = json['id']! as String,
        model = json['model']! as String,
        choices =
            objects(json['choices']).map(ChatChunkChoice.fromJson).toList(),
        usage = Usage.maybe(json['usage']);

  final String id;
  final String model;
  final List<ChatChunkChoice> choices;

  /// In the last piece, if `stream_options.include_usage` asked for it.
  final Usage? usage;

  /// The text of the first choice's piece; empty where it has none.
  String get text => choices.firstOrNull?.content ?? '';
}

/// One choice's piece.
final class ChatChunkChoice {
  ChatChunkChoice.fromJson(Json json)
      : this._(json, json['delta']! as Json);

  ChatChunkChoice._(Json json, Json delta)
      : index = json['index']! as int,
        finishReason = json['finish_reason'] as String?,
        role = delta['role'] as String?,
        content = delta['content'] as String?,
        reasoning = delta['reasoning_content'] as String?,
        toolCalls = _toolCalls(delta['tool_calls']);

  final int index;

  /// Set in the choice's last piece: `stop`, `length`, `tool_calls`, …
  final String? finishReason;

  /// Set in the choice's first piece.
  final String? role;
  final String? content;
  final String? reasoning;

  /// Each call comes whole.
  final List<ToolCall>? toolCalls;
}

/// Counts of tokens.
final class Usage {
  Usage.fromJson(Json json)
      : inputTokens = json['input_tokens']! as int,
        outputTokens = json['output_tokens']! as int,
        totalTokens = json['total_tokens']! as int;

  static Usage? maybe(Object? json) =>
      json == null ? null : Usage.fromJson(json as Json);

  final int inputTokens;
  final int outputTokens;
  final int totalTokens;
}
