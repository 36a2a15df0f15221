import 'dart:isolate';

import 'bindings.dart';
import 'config.dart';
import 'errors.dart';
import 'json.dart';
import 'library.dart';
import 'status.dart';

/// The library as a whole, and where models come from.
///
/// Each call is made in an isolate of its own: none blocks the caller's, so that all may be used from a user interface.
/// They throw [LibMlxException], and [ArgumentError] where the library cannot be opened.
final class LibMlxRuntime {
  /// Uses the library at [libraryPath]; by default the one that the system's linker finds under its usual name.
  const LibMlxRuntime({this.libraryPath});

  final String? libraryPath;

  /// The ABI that this package was written for: [LibraryVersion.abiVersion] must be the same.
  static const abiVersion = LIB_MLX_ABI_VERSION;

  /// Describes the library that was found; starts no Python.
  Future<LibraryVersion> version() async => LibraryVersion.fromJson(
      await _inBackground(libraryPath, (library) => library.version()));

  /// Begins to load a model and returns it at once: see [LibMlxModel.progress] and [LibMlxModel.ready].
  ///
  /// The process's first load waits for Python to start, about a second. [LibMlxModel.unload] cancels the load; a failed
  /// one, too, holds its handle until then.
  Future<LibMlxModel> startLoading(LoadConfig config) async {
    final json = {...config.toJson(), 'wait': false};
    final answer = await _inBackground(
        libraryPath, (library) => library.loadModel(json));
    return LibMlxModel._(libraryPath, answer['handle']! as int);
  }

  /// Loads a model and returns it when it is ready; nothing stays in memory after an error.
  Future<LibMlxModel> load(LoadConfig config,
      {void Function(LoadProgress progress)? onProgress}) async {
    final model = await startLoading(config);
    try {
      await model.progress().forEach(onProgress ?? (_) {});
      await model.ready();
    } on Object {
      await model.unload().then<void>((_) {}, onError: (Object _) {});
      rethrow;
    }
    return model;
  }

  /// Stops every server, cancels every load and unloads every model: about 3 seconds at most.
  ///
  /// The library stays usable. Calling it is optional, before the process ends too.
  Future<void> shutdown() =>
      _inBackground(libraryPath, (library) => library.shutdown());
}

/// A loaded model, or one that is being loaded.
///
/// It stays in memory until [unload] or [LibMlxRuntime.shutdown]. Every method may be called at any time, also while
/// another one is under way; once the model is unloaded, all throw `invalid_handle`.
final class LibMlxModel {
  const LibMlxModel._(this._libraryPath, this.handle);

  final String? _libraryPath;

  /// The library's name for it: positive, never used twice in a process.
  final int handle;

  /// The model and its server at this moment, also while it loads.
  Future<Status> status() async => Status.fromJson(
      await _call((library, handle) => library.serverStatus(handle)));

  /// Reports how far the load is at every change, until it has ended in whichever way.
  Stream<LoadProgress> progress(
      {Duration interval = const Duration(milliseconds: 100)}) async* {
    LoadProgress? last;
    while (true) {
      final ModelStatus model;
      try {
        model = (await status()).model;
      } on LibMlxException {
        return;
      }
      if (model.state != ModelState.loading &&
          model.state != ModelState.unloading) {
        return;
      }
      final now = (fraction: model.progress, stage: model.stage);
      if (now != last) yield now;
      last = now;
      await Future<void>.delayed(interval);
    }
  }

  /// Waits until the load has ended, and throws its error if it failed, `invalid_handle` if the model was unloaded
  /// meanwhile.
  Future<void> ready() async {
    await progress().drain<void>();
    final error = (await status()).model.error;
    if (error != null) throw error;
  }

  /// Starts the model's HTTP server and returns when it accepts connections.
  ///
  /// A running server is left as it is and described again, without its key.
  Future<ServerStatus> startServer(
      [ServerConfig config = const ServerConfig()]) async {
    final json = config.toJson();
    final answer =
        await _call((library, handle) => library.startServer(handle, json));
    return ServerStatus.fromJson(answer['server']! as Json);
  }

  /// Ends running streams with their terminal event, then closes the server: about 5 seconds at most.
  ///
  /// Without a running server it does nothing.
  Future<void> stopServer() =>
      _call((library, handle) => library.stopServer(handle));

  /// Ends all GPU work until [resume]: for an app that goes to the background, a machine about to sleep.
  ///
  /// Returns when the step in progress has ended. The model stays in memory; what requests do meanwhile says
  /// [ServerConfig.suspendedRequests]. Suspending twice is fine.
  Future<void> suspend() => _call((library, handle) => library.suspend(handle));

  /// Undoes [suspend].
  Future<void> resume() => _call((library, handle) => library.resume(handle));

  /// Stops the server, cancels a load in progress and frees the model's memory: about 10 seconds at most.
  Future<MemoryReport> unload() async {
    final answer = await _call((library, handle) => library.unloadModel(handle));
    return MemoryReport.fromJson(answer['memory']! as Json);
  }

  Future<Json> _call(Json Function(Library library, int handle) call) {
    final handle = this.handle;
    return _inBackground(_libraryPath, (library) => call(library, handle));
  }
}

/// Makes a call in an isolate of its own. What [call] captures is copied there.
Future<Json> _inBackground(
        String? libraryPath, Json Function(Library library) call) =>
    Isolate.run(() => call(Library.open(libraryPath)), debugName: 'lib_mlx');
