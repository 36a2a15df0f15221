import 'errors.dart';
import 'json.dart';

/// What a model is doing. New states may appear.
extension type const ModelState(String value) implements String {
  static const loading = ModelState('loading');
  static const ready = ModelState('ready');
  static const suspended = ModelState('suspended');

  /// Busy with one step for a minute or more.
  static const stalled = ModelState('stalled');
  static const unloading = ModelState('unloading');

  /// [ModelStatus.error] says why.
  static const failed = ModelState('failed');
}

/// What a server is doing. New states may appear.
extension type const ServerState(String value) implements String {
  static const stopped = ServerState('stopped');
  static const starting = ServerState('starting');
  static const running = ServerState('running');
  static const stopping = ServerState('stopping');
}

/// A model and its server at one moment.
final class Status {
  Status.fromJson(Json json)
      : model = ModelStatus.fromJson(json['model']! as Json),
        server = ServerStatus.fromJson(json['server']! as Json);

  final ModelStatus model;
  final ServerStatus server;
}

/// A model at one moment.
final class ModelStatus {
  ModelStatus.fromJson(Json json)
      : state = ModelState(json['status']! as String),
        id = json['model_id']! as String,
        path = json['model_path']! as String,
        progress = (json['progress']! as num).toDouble(),
        stage = json['stage']! as String,
        error = switch (json['error']) {
          final Json error => LibMlxException.fromJson(error),
          _ => null,
        },
        contextLength = json['context_length'] as int?,
        device = json['device'] as String?,
        weights = json['weights'] as String?,
        blas = json['blas'] as String?,
        encoders = json['encoders'] as String?;

  final ModelState state;

  /// The name clients use.
  final String id;
  final String path;

  /// From 0 to 1; meaningful while the model loads.
  final double progress;

  /// What a load is doing.
  final String stage;

  /// Why the model failed.
  final LibMlxException? error;

  /// Upper bound in tokens of prompt plus completion; this and the rest are null until the model is loaded.
  final int? contextLength;

  /// `cpu` or `gpu`.
  final String? device;

  /// How the weights are kept in memory: `float32`, `float16`, `bfloat16` or `quantized`.
  final String? weights;

  /// The library that is used on the CPU in place of MLX's own slow one; null: MLX as shipped.
  final String? blas;

  /// Those of images: `waiting` for their first use, or `loaded`; null: it has none.
  final String? encoders;
}

/// A server at one moment; the address is set while it runs.
final class ServerStatus {
  ServerStatus.fromJson(Json json)
      : state = ServerState(json['status']! as String),
        host = json['host'] as String?,
        port = json['port'] as int?,
        baseUrl = switch (json['base_url']) {
          final String url => Uri.parse(url),
          _ => null,
        },
        modelId = json['model_id'] as String?,
        uds = json['uds'] as String?,
        apiKey = json['api_key'] as String?;

  final ServerState state;
  final String? host;
  final int? port;

  /// The server's root: `/v1/chat/completions` is below it.
  final Uri? baseUrl;

  /// The name clients use for the model.
  final String? modelId;

  /// The Unix socket it listens on, if it does; [host] and [port] mean nothing then.
  final String? uds;

  /// Told once, in the answer to the start.
  final String? apiKey;
}

/// How far a load is, from 0 to 1, and what is being done.
typedef LoadProgress = ({double fraction, String stage});

/// The process's resident memory around an unload.
final class MemoryReport {
  MemoryReport.fromJson(Json json)
      : beforeBytes = json['before_bytes']! as int,
        afterBytes = json['after_bytes']! as int;

  final int beforeBytes;
  final int afterBytes;
}

/// The library that was found at run time.
final class LibraryVersion {
  LibraryVersion.fromJson(Json json)
      : version = json['version']! as String,
        abiVersion = json['abi_version']! as int,
        pythonVersion = json['python_version'] as String?,
        mlxVersion = json['mlx_version'] as String?;

  final String version;
  final int abiVersion;

  /// The Python that is in use or would be started; null where none is found.
  final String? pythonVersion;

  /// The MLX installed beside it; null where unknown.
  final String? mlxVersion;
}
