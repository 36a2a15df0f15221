@TestOn('linux || mac-os')
library;

import 'dart:io';

import 'package:http/http.dart' as http;
import 'package:lib_mlx/lib_mlx.dart';
import 'package:test/test.dart';

/// The library itself, with a crafted checkpoint: `LIB_MLX_LIBRARY` and `LIB_MLX_TEST_MODEL` name them.
void main() {
  final library = Platform.environment['LIB_MLX_LIBRARY'];
  final path = Platform.environment['LIB_MLX_TEST_MODEL'];
  if (library == null || path == null) {
    test('the library', () {}, skip: 'LIB_MLX_LIBRARY and LIB_MLX_TEST_MODEL name nothing');
    return;
  }
  final runtime = LibMlxRuntime(libraryPath: library);

  Future<void> withModel(Future<void> Function(LibMlxModel model) body) async {
    final model = await runtime.load(LoadConfig(modelPath: path, modelId: 'crafted'));
    try {
      await body(model);
    } finally {
      await model.unload().then<void>((_) {}, onError: (Object _) {});
    }
  }

  Matcher throwsCode(LibMlxErrorCode code) =>
      throwsA(isA<LibMlxException>().having((error) => error.code, 'code', code));

  test('the library tells its version', () async {
    expect((await runtime.version()).abiVersion, LibMlxRuntime.abiVersion);
  });

  test('a load reports its progress; an unload its memory', () async {
    final seen = <LoadProgress>[];
    final model = await runtime.load(LoadConfig(modelPath: path), onProgress: seen.add);
    expect(seen.every((progress) => progress.fraction >= 0 && progress.fraction <= 1), isTrue);
    expect((await model.status()).model.state, ModelState.ready);
    expect((await model.unload()).beforeBytes, greaterThan(0));
    expect(model.status(), throwsCode(LibMlxErrorCode.invalidHandle));
  });

  test('a model that does not exist is model_not_found', () {
    expect(runtime.load(const LoadConfig(modelPath: '/nowhere/at "all" é')),
        throwsCode(LibMlxErrorCode.modelNotFound));
  });

  test('calls from many isolates at once all get their answers', () async {
    await withModel((model) async {
      final states = await Future.wait([for (var i = 0; i < 16; i++) model.status()]);
      expect(states.map((status) => status.model.state), everyElement(ModelState.ready));
    });
  });

  test('a chat is streamed, refused by name, cancelled, and ended by a stop', () async {
    await withModel((model) async {
      final server = await model.startServer(const ServerConfig(apiKey: 'auto'));
      final client = LibMlxOpenAiClient(server.baseUrl!, apiKey: server.apiKey);
      ChatRequest ask(String script) =>
          ChatRequest(model: 'crafted', messages: [ChatMessage.user(script)]);

      final text = await client.chatCompletionsStream(ask('unicode')).map((piece) => piece.text).join();
      expect(text, 'café 日本語 👩\u200D💻 ok');

      await expectLater(
        client.chatCompletions(const ChatRequest(model: 'x', messages: [ChatMessage.user('hello')])),
        throwsA(isA<LibMlxApiException>().having((error) => error.status, 'status', 404)),
      );

      await client.chatCompletionsStream(ask('loop')).take(3).drain<void>();
      while ((await client.health()).inFlight > 0) {
        await Future<void>.delayed(const Duration(milliseconds: 20));
      }

      final ended = expectLater(
        client.chatCompletionsStream(ask('loop')).drain<void>(),
        throwsA(isA<LibMlxApiException>().having((error) => error.code, 'code', LibMlxErrorCode.shuttingDown)),
      );
      while ((await client.health()).inFlight == 0) {
        await Future<void>.delayed(const Duration(milliseconds: 20));
      }
      await model.stopServer();
      await ended;
      await expectLater(client.health(), throwsA(isA<http.ClientException>()));
      client.close();
    });
  });

  test('after a shutdown a load works', () async {
    await withModel((model) async {
      await runtime.shutdown();
      await expectLater(model.status(), throwsCode(LibMlxErrorCode.invalidHandle));
    });
    await withModel((model) async {});
  });
}
