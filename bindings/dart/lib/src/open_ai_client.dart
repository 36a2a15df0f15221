import 'dart:async';
import 'dart:convert';
import 'dart:io';

import 'package:http/http.dart' as http;
import 'package:http/io_client.dart';

import 'chat.dart';
import 'errors.dart';
import 'json.dart';
import 'responses.dart';
import 'server_sent_events.dart';

/// Talks to a model's server in OpenAI's dialect.
///
/// Failures are [LibMlxApiException] where the server reports them, [http.ClientException] where it cannot be reached or
/// goes away, and [FormatException] where an answer is not understood. There are no timeouts: a model may take its time.
///
/// A stream sends its request when it is listened to. Cancelling its subscription, or leaving an `await for`, closes the
/// connection, and the model stops working on it.
final class LibMlxOpenAiClient {
  /// A client of the server whose root is [baseUrl], as `ServerStatus.baseUrl` has it.
  LibMlxOpenAiClient(this.baseUrl, {String? apiKey, http.Client? client})
      : _apiKey = apiKey,
        _client = client ?? IOClient(_withoutProxy());

  final Uri baseUrl;
  final String? _apiKey;
  final http.Client _client;

  /// The server is on this machine, whatever proxies the environment names.
  static HttpClient _withoutProxy() =>
      HttpClient()..findProxy = (_) => 'DIRECT';

  /// Closes all connections; the client cannot be used any more.
  void close() => _client.close();

  /// The models that can be asked for, loaded or not.
  Future<List<ModelInfo>> listModels() => _answer('GET', 'v1/models',
      (json) => objects(json['data']).map(ModelInfo.fromJson).toList());

  /// What the server is doing.
  Future<Health> health() => _answer('GET', 'health', Health.fromJson);

  /// A whole answer to a conversation.
  Future<ChatCompletion> chatCompletions(ChatRequest request) => _answer(
      'POST', 'v1/chat/completions', ChatCompletion.fromJson, request.toJson());

  /// An answer to a conversation in pieces, as the model writes it.
  Stream<ChatChunk> chatCompletionsStream(ChatRequest request) =>
      _stream('v1/chat/completions', request.toJson(), ChatChunk.fromJson);

  /// A response as a stream of events; the last one carries the whole of it.
  Stream<ResponseEvent> responsesStream(ResponseRequest request) =>
      _stream('v1/responses', request.toJson(), ResponseEvent.fromJson);

  Future<T> _answer<T>(String method, String path, T Function(Json) decode,
      [Json? body]) async {
    final response = await _send(_request(method, path, body));
    return _decoded(
        parseObject(await response.stream.bytesToString()), decode);
  }

  Stream<T> _stream<T>(String path, Json body, T Function(Json) decode) {
    // Cancelling the answer's own stream would not do before the answer has begun.
    final abort = Completer<void>();
    final controller = StreamController<T>();
    controller
      ..onListen = () async {
        try {
          final response = await _send(
              _request('POST', path, {...body, 'stream': true}, abort.future));
          await controller.addStream(Stream<T>.eventTransformed(
            serverSentEvents(response.stream),
            (sink) => _AnswerSink<T>(sink, decode),
          ));
        } on Object catch (error, stackTrace) {
          controller.addError(error, stackTrace);
        }
        await controller.close();
      }
      ..onCancel = () {
        if (!abort.isCompleted) abort.complete();
      };
    return controller.stream;
  }

  http.Request _request(String method, String path, Json? body,
      [Future<void>? abort]) {
    final url = baseUrl.replace(
        pathSegments: [...baseUrl.pathSegments, ...path.split('/')]
            .where((segment) => segment.isNotEmpty));
    final request = http.AbortableRequest(method, url, abortTrigger: abort);
    if (_apiKey case final key?) request.headers['Authorization'] = 'Bearer $key';
    if (body != null) {
      request
        ..headers['Content-Type'] = 'application/json'
        ..bodyBytes = utf8.encode(jsonEncode(body));
    }
    return request;
  }

  /// The answer, if it is one.
  Future<http.StreamedResponse> _send(http.Request request) async {
    final response = await _client.send(request);
    if (response.statusCode >= 200 && response.statusCode < 300) {
      return response;
    }
    throw _refusal(
        response.statusCode, await response.stream.bytesToString());
  }
}

LibMlxApiException _refusal(int status, String body) {
  Object? error;
  try {
    error = parseObject(body)['error'];
  } on FormatException {
    // Not lib_mlx's: the status must do.
  }
  return LibMlxApiException.fromJson(status,
      error is Json ? error : {'message': 'The server answered with $status.'});
}

/// What [json] says; a [FormatException] where a key is missing or has another type.
T _decoded<T>(Json json, T Function(Json) decode) {
  try {
    return decode(json);
  } on TypeError catch (error) {
    throw FormatException('$error', json);
  }
}

/// Makes answers of a stream's events, up to `[DONE]`; a stream without it was cut off.
final class _AnswerSink<T> implements EventSink<ServerSentEvent> {
  _AnswerSink(this._answers, this._decode);

  final EventSink<T> _answers;
  final T Function(Json) _decode;
  bool _ended = false;

  @override
  void add(ServerSentEvent event) {
    if (_ended) return;
    if (event.data == '[DONE]') return _end();
    try {
      final json = parseObject(event.data);
      if (json['error'] case final Json error) {
        throw LibMlxApiException.fromJson(200, error);
      }
      _answers.add(_decoded(json, _decode));
    } on Exception catch (error, stackTrace) {
      addError(error, stackTrace);
    }
  }

  @override
  void addError(Object error, [StackTrace? stackTrace]) {
    if (_ended) return;
    _answers.addError(error, stackTrace);
    _end();
  }

  @override
  void close() => addError(http.ClientException(
      'The connection was lost before the answer had ended.'));

  void _end() {
    _ended = true;
    _answers.close();
  }
}

/// A model as its server lists it.
final class ModelInfo {
  ModelInfo.fromJson(Json json)
      : id = json['id']! as String,
        status = json['status']! as String,
        contextLength = json['context_length'] as int?,
        memoryBytes = json['memory_bytes']! as int,
        requests = json['requests']! as int;

  final String id;

  /// `ready` where it is in memory.
  final String status;

  /// Upper bound in tokens of prompt plus completion, as far as it is known.
  final int? contextLength;

  /// The memory of its weights.
  final int memoryBytes;

  /// How many requests it is answering.
  final int requests;
}

/// What a server is doing.
final class Health {
  Health.fromJson(Json json)
      : status = json['status']! as String,
        models = (json['models']! as List<Object?>).cast<String>(),
        inFlight = json['in_flight']! as int,
        uptime = Duration(
            milliseconds: ((json['uptime_s']! as num) * 1000).round());

  /// `ok` where requests are answered.
  final String status;

  /// The names of the models that are in memory.
  final List<String> models;

  /// The requests that are running or waiting.
  final int inFlight;
  final Duration uptime;
}
