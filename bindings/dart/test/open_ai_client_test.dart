import 'dart:async';
import 'dart:convert';

import 'package:http/http.dart' as http;
import 'package:http/testing.dart';
import 'package:lib_mlx/lib_mlx.dart';
import 'package:test/test.dart';

/// A client whose server answers every request with [pieces].
LibMlxOpenAiClient answering(Stream<String> pieces, {int status = 200}) =>
    LibMlxOpenAiClient(
      Uri.parse('http://127.0.0.1:1'),
      apiKey: 'secret',
      client: MockClient.streaming((request, body) async {
        expect(request.headers['Authorization'], 'Bearer secret');
        await body.drain<void>();
        return http.StreamedResponse(pieces.transform(utf8.encoder), status);
      }),
    );

String chunk(String text) => 'data: ${jsonEncode({
          'id': 'c',
          'model': 'm',
          'choices': [
            {
              'index': 0,
              'delta': {'content': text},
              'finish_reason': null,
            },
          ],
        })}\n\n';

const request = ChatRequest(messages: [ChatMessage.user('hello')]);

void main() {
  test('a stream is its pieces up to [DONE]', () async {
    final client = answering(Stream.fromIterable(
        [chunk('a'), ': keep-alive\n\n', chunk('b'), 'data: [DONE]\n\n', chunk('c')]));
    final texts =
        await client.chatCompletionsStream(request).map((piece) => piece.text).toList();
    expect(texts, ['a', 'b']);
  });

  test('a stream that is cut off is a lost connection', () {
    final client = answering(Stream.value(chunk('a')));
    expect(
      client.chatCompletionsStream(request).map((piece) => piece.text),
      emitsInOrder(<Object>['a', emitsError(isA<http.ClientException>()), emitsDone]),
    );
  });

  test('an error in mid-stream is the server\'s', () {
    final client = answering(Stream.fromIterable([
      chunk('a'),
      'data: {"error": {"message": "no more room", "code": "insufficient_memory"}}\n\n',
      'data: [DONE]\n\n',
    ]));
    expect(
      client.chatCompletionsStream(request).map((piece) => piece.text),
      emitsInOrder(<Object>[
        'a',
        emitsError(isA<LibMlxApiException>()
            .having((error) => error.code, 'code', LibMlxErrorCode.insufficientMemory)
            .having((error) => error.status, 'status', 200)),
        emitsDone,
      ]),
    );
  });

  test('a refusal has status, code and field', () {
    final client = answering(
      Stream.value('{"error": {"message": "m", "code": "invalid_argument", "param": "n"}}'),
      status: 400,
    );
    expect(
      client.chatCompletions(request),
      throwsA(isA<LibMlxApiException>()
          .having((error) => error.status, 'status', 400)
          .having((error) => error.code, 'code', LibMlxErrorCode.invalidArgument)
          .having((error) => error.param, 'param', 'n')),
    );
  });

  test('a refusal in another shape keeps its status', () {
    final client = answering(Stream.value('<html>'), status: 502);
    expect(
      client.listModels(),
      throwsA(isA<LibMlxApiException>()
          .having((error) => error.status, 'status', 502)
          .having((error) => error.code, 'code', LibMlxErrorCode.internal)),
    );
  });

  test('an answer that is not understood is a format exception', () {
    expect(answering(Stream.value('{"status": 7}')).health(), throwsFormatException);
    expect(answering(Stream.value('[]')).health(), throwsFormatException);
    expect(
      answering(Stream.value('data: {"id": 7}\n\n')).chatCompletionsStream(request),
      emitsInOrder(<Object>[emitsError(isFormatException), emitsDone]),
    );
  });

  test('cancelling a stream aborts its request, also before it is answered', () async {
    final aborted = Completer<void>();
    final client = LibMlxOpenAiClient(
      Uri.parse('http://127.0.0.1:1'),
      client: MockClient.streaming((request, body) async {
        await (request as http.Abortable).abortTrigger;
        aborted.complete();
        throw http.RequestAbortedException(request.url);
      }),
    );
    final subscription = client.chatCompletionsStream(request).listen((_) {});
    await Future<void>.delayed(Duration.zero);
    await subscription.cancel();
    await aborted.future;
  });

  test('a response is typed by event, and unknown ones are kept', () async {
    String event(Map<String, Object?> json) => 'data: ${jsonEncode(json)}\n\n';
    final client = answering(Stream.fromIterable([
      event({'type': 'response.output_text.delta', 'delta': 'a'}),
      event({'type': 'response.sneezed', 'volume': 3}),
      event({
        'type': 'response.completed',
        'response': {'id': 'r', 'model': 'm', 'status': 'completed', 'output': <Object>[]},
      }),
      'data: [DONE]\n\n',
    ]));
    final events = await client.responsesStream(const ResponseRequest(input: 'hello')).toList();
    expect(events, [isA<OutputTextDelta>(), isA<OtherResponseEvent>(), isA<ResponseSnapshot>()]);
    expect(events[1].json['volume'], 3);
  });
}
