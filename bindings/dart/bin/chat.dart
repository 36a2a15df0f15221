import 'dart:io';

import 'package:lib_mlx/lib_mlx.dart';

/// Talks to a model in this process: `dart run lib_mlx:chat MODEL_PATH [PROMPT]`.
///
/// `LIB_MLX_LIBRARY` in the environment names the library, if the system's linker does not find it.
Future<void> main(List<String> arguments) async {
  if (arguments.isEmpty || arguments.length > 2) {
    stderr.writeln('usage: chat MODEL_PATH [PROMPT]');
    exit(1);
  }
  final runtime =
      LibMlxRuntime(libraryPath: Platform.environment['LIB_MLX_LIBRARY']);
  final prompt = arguments.length > 1
      ? arguments[1]
      : 'Why is the sky blue? Answer in two sentences.';
  try {
    await _run(runtime, arguments.first, prompt);
  } on LibMlxException catch (error) {
    stderr.writeln('${error.code}\n${error.message}\n${error.hint}');
    exit(1);
  } on LibMlxApiException catch (error) {
    stderr.writeln('${error.code}\n${error.message}');
    exit(1);
  }
}

Future<void> _run(LibMlxRuntime runtime, String path, String prompt) async {
  final model = await runtime.startLoading(LoadConfig(modelPath: path));
  await for (final progress in model.progress()) {
    stdout.writeln(
        'loading: ${(progress.fraction * 100).floor()} % ${progress.stage}');
  }
  await model.ready();

  final server = await model.startServer();
  stdout.writeln('server: ${server.baseUrl}');
  final client = LibMlxOpenAiClient(server.baseUrl!);
  await _chat(client, server.modelId, prompt);
  await _cancelInMidAnswer(client, server.modelId);
  client.close();

  await model.stopServer();
  final memory = await model.unload();
  stdout.writeln(
      'memory: ${memory.beforeBytes} bytes before, ${memory.afterBytes} after');
}

Future<void> _chat(
    LibMlxOpenAiClient client, String? model, String prompt) async {
  final request = ChatRequest(
    model: model,
    messages: [ChatMessage.user(prompt)],
    temperature: 0,
    maxTokens: 256,
  );
  await for (final chunk in client.chatCompletionsStream(request)) {
    stdout.write(chunk.text);
  }
  stdout.writeln();
}

/// Leaves a long stream after a few pieces, which closes its connection, and waits until the model knows.
Future<void> _cancelInMidAnswer(LibMlxOpenAiClient client, String? model) async {
  final request = ChatRequest(
    model: model,
    messages: const [ChatMessage.user('loop: count from one to a thousand.')],
  );
  var pieces = 0;
  await for (final chunk in client.chatCompletionsStream(request)) {
    if (chunk.text.isNotEmpty && ++pieces == 5) break;
  }
  var health = await client.health();
  while (health.inFlight > 0) {
    await Future<void>.delayed(const Duration(milliseconds: 20));
    health = await client.health();
  }
  stdout.writeln(
      'cancelled after $pieces pieces, in flight: ${health.inFlight}');
}
