import 'chat.dart';
import 'json.dart';

/// A request of OpenAI's Responses API. What is null is left to the model and the server.
final class ResponseRequest {
  const ResponseRequest({
    required this.input,
    this.model,
    this.instructions,
    this.previousResponseId,
    this.maxOutputTokens,
    this.temperature,
    this.topP,
    this.tools,
    this.toolChoice,
    this.store,
    this.extra = const {},
  });

  /// The model's name; a server with one model may be asked without.
  final String? model;

  /// A text, or a list of items.
  final Object input;
  final String? instructions;

  /// The response to go on from.
  final String? previousResponseId;

  /// Bound on the answer in tokens, reasoning included; the context's end by default.
  final int? maxOutputTokens;

  /// From 0, always the likeliest token, to 2.
  final double? temperature;
  final double? topP;

  /// Functions the model may call.
  final List<Json>? tools;

  /// `auto`, `none`, `required` or a function.
  final Object? toolChoice;

  /// Whether the server keeps the response, so that another one can go on from it; true by default.
  final bool? store;

  /// Any other field that the server understands, under its name there.
  final Json extra;

  Json toJson() => withoutNulls({
        'model': model,
        'input': input,
        'instructions': instructions,
        'previous_response_id': previousResponseId,
        'max_output_tokens': maxOutputTokens,
        'temperature': temperature,
        'top_p': topP,
        'tools': tools,
        'tool_choice': toolChoice,
        'store': store,
        ...extra,
      });
}

/// A response as far as it is made.
final class ResponseObject {
  ResponseObject.fromJson(Json json)
      : id = json['id']! as String,
        model = json['model']! as String,
        status = json['status']! as String,
        output = objects(json['output']),
        errorMessage = switch (json['error']) {
          final Json error => error['message']! as String,
          _ => null,
        },
        usage = Usage.maybe(json['usage']);

  final String id;
  final String model;

  /// `in_progress`, `completed`, `incomplete`, `failed`, …
  final String status;

  /// Messages, reasoning and function calls.
  final List<Json> output;

  /// What made it fail.
  final String? errorMessage;
  final Usage? usage;
}

/// An event of a response's stream, by its `type`.
sealed class ResponseEvent {
  ResponseEvent._(this.json) : type = json['type']! as String;

  factory ResponseEvent.fromJson(Json json) => switch (json['type']) {
        'response.created' ||
        'response.in_progress' ||
        'response.completed' ||
        'response.incomplete' ||
        'response.failed' =>
          ResponseSnapshot._(json),
        'response.output_item.added' ||
        'response.output_item.done' =>
          ResponseItem._(json),
        'response.output_text.delta' => OutputTextDelta._(json),
        'response.reasoning_text.delta' => ReasoningTextDelta._(json),
        _ => OtherResponseEvent._(json),
      };

  final String type;

  /// The event as it came.
  final Json json;
}

/// The whole response: at its start and, with the type `response.completed`, `.incomplete` or `.failed`, its end.
final class ResponseSnapshot extends ResponseEvent {
  ResponseSnapshot._(super.json)
      : response = ResponseObject.fromJson(json['response']! as Json),
        super._();

  final ResponseObject response;
}

/// An item of [ResponseObject.output] begins or is done.
final class ResponseItem extends ResponseEvent {
  ResponseItem._(super.json)
      : outputIndex = json['output_index']! as int,
        item = json['item']! as Json,
        super._();

  final int outputIndex;
  final Json item;
}

/// A piece of the answer's text.
final class OutputTextDelta extends ResponseEvent {
  OutputTextDelta._(super.json)
      : delta = json['delta']! as String,
        super._();

  final String delta;
}

/// A piece of the model's reasoning.
final class ReasoningTextDelta extends ResponseEvent {
  ReasoningTextDelta._(super.json)
      : delta = json['delta']! as String,
        super._();

  final String delta;
}

/// An event of another type.
final class OtherResponseEvent extends ResponseEvent {
  OtherResponseEvent._(super.json) : super._();
}
