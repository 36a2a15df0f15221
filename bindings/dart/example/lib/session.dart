import 'dart:async';

import 'package:flutter/foundation.dart';
import 'package:lib_mlx/lib_mlx.dart';

/// A model in this process and a conversation with it; tells its listeners of every change.
class Session extends ChangeNotifier {
  Session(String? libraryPath) : _runtime = LibMlxRuntime(libraryPath: libraryPath);

  final LibMlxRuntime _runtime;
  LibMlxModel? _model;
  LibMlxOpenAiClient? _client;
  String? _modelId;
  StreamSubscription<ChatChunk>? _answering;
  bool _disposed = false;

  /// How far a load is; null while there is none.
  LoadProgress? progress;

  /// What was said so far.
  final List<ChatMessage> messages = [];

  /// The answer that is being written.
  String answer = '';

  /// What went wrong last, for people.
  String? problem;

  bool get ready => _client != null;
  bool get answering => _answering != null;

  /// Loads the model at [path] in place of the present one and starts its server.
  Future<void> load(String path) => _reporting(() async {
        await _unload();
        final model = _model = await _runtime.startLoading(LoadConfig(modelPath: path));
        await for (final now in model.progress()) {
          progress = now;
          _changed();
        }
        await model.ready();
        final server = await model.startServer();
        _client = LibMlxOpenAiClient(server.baseUrl!);
        _modelId = server.modelId;
      });

  /// Asks the model; its answer comes piece by piece.
  void ask(String text) {
    final client = _client;
    if (client == null || answering) return;
    problem = null;
    messages.add(ChatMessage.user(text));
    final request = ChatRequest(model: _modelId, messages: List.of(messages));
    _answering = client.chatCompletionsStream(request).listen(
      (chunk) {
        answer += chunk.text;
        _changed();
      },
      onError: (Object error) => problem = _explain(error),
      onDone: _keepAnswer,
      cancelOnError: false,
    );
    _changed();
  }

  /// Ends the answer where it is, which closes its connection.
  Future<void> stop() async {
    final answering = _answering;
    _keepAnswer();
    await answering?.cancel();
  }

  void _keepAnswer() {
    _answering = null;
    if (answer.isNotEmpty) messages.add(ChatMessage.assistant(answer));
    answer = '';
    _changed();
  }

  Future<void> _reporting(Future<void> Function() body) async {
    problem = null;
    progress = (fraction: 0.0, stage: '');
    _changed();
    try {
      await body();
    } on Object catch (error) {
      problem = _explain(error);
      await _unload();
    }
    progress = null;
    _changed();
  }

  Future<void> _unload() async {
    await stop();
    _client?.close();
    _client = null;
    messages.clear();
    final model = _model;
    _model = null;
    await model?.unload();
  }

  static String _explain(Object error) => switch (error) {
        LibMlxException(:final message, :final hint) => '$message $hint'.trimRight(),
        LibMlxApiException(:final message) => message,
        _ => '$error',
      };

  void _changed() {
    if (!_disposed) notifyListeners();
  }

  @override
  void dispose() {
    _disposed = true;
    unawaited(_unload());
    super.dispose();
  }
}
