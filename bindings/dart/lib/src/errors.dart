import 'json.dart';

/// What kind of failure an error is: stable, meant for programs. New ones may appear.
extension type const LibMlxErrorCode(String value) implements String {
  /// The configuration is not a JSON object in UTF-8.
  static const invalidJson = LibMlxErrorCode('invalid_json');

  /// A key is unknown, missing, or has a wrong type or value.
  static const invalidArgument = LibMlxErrorCode('invalid_argument');

  /// No model is loaded under that handle.
  static const invalidHandle = LibMlxErrorCode('invalid_handle');

  /// No model of that name or path.
  static const modelNotFound = LibMlxErrorCode('model_not_found');

  /// The checkpoint's architecture or format is not supported.
  static const unsupportedModel = LibMlxErrorCode('unsupported_model');

  /// Well-formed, but this model or version cannot honour it.
  static const unsupportedFeature = LibMlxErrorCode('unsupported_feature');

  /// The checkpoint's files are damaged or incomplete.
  static const corruptModel = LibMlxErrorCode('corrupt_model');

  /// The model or request does not fit into memory; also: the process has run out of it.
  static const insufficientMemory = LibMlxErrorCode('insufficient_memory');

  /// There is no room on the disk for what a load has to write.
  static const diskFull = LibMlxErrorCode('disk_full');

  /// The load was cancelled by an unload or a shutdown.
  static const loadCancelled = LibMlxErrorCode('load_cancelled');

  /// The model is not ready yet.
  static const modelLoading = LibMlxErrorCode('model_loading');

  /// The model is suspended, and its server was started to refuse requests meanwhile.
  static const suspended = LibMlxErrorCode('suspended');

  /// The child process that a model with `Isolation.process` ran in has died.
  static const engineDied = LibMlxErrorCode('engine_died');

  /// The requested port or socket is taken.
  static const addressInUse = LibMlxErrorCode('address_in_use');

  /// The server could not start.
  static const serverStartFailed = LibMlxErrorCode('server_start_failed');

  /// The server or the process is stopping.
  static const shuttingDown = LibMlxErrorCode('shutting_down');

  /// No usable Python, or `LIB_MLX_HOME` holds none.
  static const pythonNotFound = LibMlxErrorCode('python_not_found');

  /// A Python was found, but of a version the library was not built for.
  static const pythonMismatch = LibMlxErrorCode('python_mismatch');

  /// Python or one of its packages failed to start.
  static const pythonInit = LibMlxErrorCode('python_init');

  /// Called in a child made by `fork()`.
  static const forked = LibMlxErrorCode('forked');

  /// A defect in lib_mlx.
  static const internal = LibMlxErrorCode('internal');

  /// The prompt does not fit into the model's context.
  static const contextLengthExceeded =
      LibMlxErrorCode('context_length_exceeded');

  /// The response that a request continues is not kept (any more).
  static const previousResponseNotFound =
      LibMlxErrorCode('previous_response_not_found');

  /// The API key is missing or wrong.
  static const unauthorized = LibMlxErrorCode('unauthorized');

  /// No such route or object.
  static const notFound = LibMlxErrorCode('not_found');

  /// The model is answering requests and cannot be unloaded now.
  static const modelBusy = LibMlxErrorCode('model_busy');

  /// The request's body is over the server's limit.
  static const payloadTooLarge = LibMlxErrorCode('payload_too_large');

  /// The server finishes what runs and takes nothing new.
  static const draining = LibMlxErrorCode('draining');

  /// As many requests are in flight as the server allows.
  static const queueFull = LibMlxErrorCode('queue_full');

  /// The request was cancelled before it finished.
  static const cancelled = LibMlxErrorCode('cancelled');
}

/// A failure that the library reports.
final class LibMlxException implements Exception {
  const LibMlxException(this.code, this.message, {this.hint = ''});

  LibMlxException.fromJson(Json json)
      : code = LibMlxErrorCode(json['code']! as String),
        message = json['message']! as String,
        hint = json['hint'] as String? ?? '';

  /// Decide by this.
  final LibMlxErrorCode code;

  /// What went wrong and why; for people.
  final String message;

  /// What to do about it; may be empty.
  final String hint;

  @override
  String toString() => '$code: $message $hint'.trimRight();
}

/// A failure that the server reports.
final class LibMlxApiException implements Exception {
  LibMlxApiException.fromJson(this.status, Json json)
      : code = LibMlxErrorCode(
            json['code'] as String? ?? LibMlxErrorCode.internal),
        message = json['message'] as String? ?? 'The request failed.',
        type = json['type'] as String?,
        param = json['param'] as String?;

  /// The HTTP status; 200 where a stream that had begun failed.
  final int status;

  /// Decide by this; [LibMlxErrorCode.internal] where the answer is none of lib_mlx's.
  final LibMlxErrorCode code;

  /// What went wrong, and what to do about it; for people.
  final String message;

  /// OpenAI's kind of error, such as `invalid_request_error`.
  final String? type;

  /// The field of the request that is wrong, if one is.
  final String? param;

  @override
  String toString() => '$code (HTTP $status): $message';
}
