import 'json.dart';

/// How weights are kept where MLX runs on the CPU.
enum CpuWeights {
  /// Dequantise only what the library cannot multiply with as it is stored: the fastest.
  auto,

  /// Dequantise to float32: 8 times the memory of 4-bit weights.
  float32,

  /// Keep quantised weights so.
  quantized,
}

/// Where engine and server of a model run.
enum Isolation {
  /// In this process.
  none,

  /// In a child process of the library's. If that dies, the model has failed with `engine_died`; the app lives on.
  process,
}

/// How important a message of the library is.
enum LogLevel { debug, info, warning, error }

/// What a server does with requests while its model is suspended.
enum SuspendedRequests {
  /// They wait until the model is resumed.
  wait,

  /// They are refused with `suspended`.
  fail,
}

/// What a request gets that leaves it out. What is null is the checkpoint's own.
final class GenerationDefaults {
  const GenerationDefaults({
    this.maxTokens,
    this.temperature,
    this.topP,
    this.topK,
    this.minP,
    this.repetitionPenalty,
  });

  /// The most tokens of an answer, reasoning included; up to the context's end by default.
  final int? maxTokens;

  /// 0 is greedy.
  final double? temperature;

  /// Draw from the likeliest tokens that have this much of the probability together.
  final double? topP;

  /// Draw from so many of the likeliest; 0 is off.
  final int? topK;

  /// Draw from those at least this likely, relative to the likeliest.
  final double? minP;

  /// Over prompt and output; 1 is off.
  final double? repetitionPenalty;

  Json toJson() => withoutNulls({
        'max_tokens': maxTokens,
        'temperature': temperature,
        'top_p': topP,
        'top_k': topK,
        'min_p': minP,
        'repetition_penalty': repetitionPenalty,
      });
}

/// Which http(s) URLs of images a server fetches.
enum ImageUrls {
  none,

  /// Those at public addresses.
  public,

  /// Those of this machine and its network too, which lets clients make the server ask there.
  any,
}

/// What to load and how. What is null is left to the library, whose defaults are named here.
final class LoadConfig {
  const LoadConfig({
    required this.modelPath,
    this.modelId,
    this.revision,
    this.lazyEncoders,
    this.isolation,
    this.logFile,
    this.logLevel,
    this.thinkingEnabled,
    this.contextLength,
    this.cpuWeights,
    this.trustRemoteCode,
    this.kvBits,
    this.memoryLimitBytes,
    this.prefixCacheBytes,
    this.prefixCachePath,
    this.promptLookup,
    this.draftModelPath,
    this.draftTokens,
    this.adapterPath,
    this.adapters,
    this.generation,
    this.minPixels,
    this.maxPixels,
    this.imageCacheBytes,
  });

  /// A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache.
  final String modelPath;

  /// The name clients use; the directory's name by default.
  final String? modelId;

  /// Branch, tag or commit of a Hugging Face repository.
  final String? revision;

  /// Load image and audio encoders at their first use; true by default.
  final bool? lazyEncoders;

  /// Where engine and server run; [Isolation.none] by default.
  final Isolation? isolation;

  /// A file to write the library's messages to.
  final String? logFile;

  /// The least important messages that are written there.
  final LogLevel? logLevel;

  /// Whether the chat template may open a reasoning block; true by default, and a request can override it.
  final bool? thinkingEnabled;

  /// Upper bound in tokens of prompt plus completion; the model's own by default.
  final int? contextLength;

  /// How weights are kept where MLX runs on the CPU; [CpuWeights.auto] by default.
  final CpuWeights? cpuWeights;

  /// Run the code that a checkpoint brings; false by default: such a checkpoint is refused.
  final bool? trustRemoteCode;

  /// Keep keys and values of the cache in 4 or 8 bits: less memory, some loss, and requests decode in turns.
  final int? kvBits;

  /// The most that weights and caches may take together; what the machine has free by default.
  final int? memoryLimitBytes;

  /// The most that is kept of past requests; 0 keeps nothing. By default 2 GiB or a tenth of the machine's memory,
  /// whichever is less.
  final int? prefixCacheBytes;

  /// A directory that keeps them across restarts.
  final String? prefixCachePath;

  /// Guess that what followed the last tokens before follows again, and check several at once; false by default.
  final bool? promptLookup;

  /// A smaller model with the same tokens, whose guesses are checked likewise.
  final String? draftModelPath;

  /// The most tokens that are guessed at once; 4 by default.
  final int? draftTokens;

  /// The directory of an adapter to begin with, or a name of [adapters].
  final String? adapterPath;

  /// Directories of adapters by name, which can take each other's place while the model serves.
  final Map<String, String>? adapters;

  /// What requests get that leave it out.
  final GenerationDefaults? generation;
  /// Images are made larger than this before the model sees them.
  final int? minPixels;

  /// Images are made smaller than this: fewer tokens, less detail.
  final int? maxPixels;

  /// The most that is kept of encoded images; 0 keeps none. By default 256 MiB or a fiftieth of the machine's memory.
  final int? imageCacheBytes;

  Json toJson() => withoutNulls({
        'model_path': modelPath,
        'model_id': modelId,
        'revision': revision,
        'lazy_encoders': lazyEncoders,
        'isolation': isolation?.name,
        'log_file': logFile,
        'log_level': logLevel?.name,
        'thinking_enabled': thinkingEnabled,
        'context_length': contextLength,
        'cpu_weights': cpuWeights?.name,
        'trust_remote_code': trustRemoteCode,
        'kv_bits': kvBits,
        'memory_limit_bytes': memoryLimitBytes,
        'prefix_cache_bytes': prefixCacheBytes,
        'prefix_cache_path': prefixCachePath,
        'prompt_lookup': promptLookup,
        'draft_model_path': draftModelPath,
        'draft_tokens': draftTokens,
        'adapter_path': adapterPath,
        'adapters': adapters,
        'generation': generation?.toJson(),
        'min_pixels': minPixels,
        'max_pixels': maxPixels,
        'image_cache_bytes': imageCacheBytes,
      });
}

/// A further model of a server, loaded when it is first asked for. What is not explained here is at [LoadConfig].
final class ServedModelConfig {
  const ServedModelConfig({
    required this.modelPath,
    this.modelId,
    this.revision,
    this.pinned,
    this.keepAlive,
    this.lazyEncoders,
    this.thinkingEnabled,
    this.contextLength,
    this.cpuWeights,
    this.trustRemoteCode,
    this.kvBits,
    this.memoryLimitBytes,
    this.prefixCacheBytes,
    this.prefixCachePath,
    this.promptLookup,
    this.draftModelPath,
    this.draftTokens,
    this.adapterPath,
    this.adapters,
    this.generation,
    this.minPixels,
    this.maxPixels,
    this.imageCacheBytes,
  });

  final String modelPath;

  /// The name clients use; the last part of [modelPath] by default.
  final String? modelId;

  final String? revision;

  /// Never unload it to make room or for idleness; false by default.
  final bool? pinned;

  /// Unload it after so long without a request, never if negative; the server's by default.
  final Duration? keepAlive;

  final bool? thinkingEnabled;
  final int? contextLength;
  final CpuWeights? cpuWeights;
  final bool? trustRemoteCode;
  final int? kvBits;
  final int? memoryLimitBytes;
  final int? prefixCacheBytes;
  final String? prefixCachePath;
  final bool? promptLookup;
  final String? draftModelPath;
  final int? draftTokens;
  final String? adapterPath;
  final Map<String, String>? adapters;
  final GenerationDefaults? generation;
  final bool? lazyEncoders;
  final int? minPixels;
  final int? maxPixels;
  final int? imageCacheBytes;

  Json toJson() => withoutNulls({
        'model_path': modelPath,
        'model_id': modelId,
        'revision': revision,
        'pinned': pinned,
        'keep_alive': _seconds(keepAlive),
        'lazy_encoders': lazyEncoders,
        'thinking_enabled': thinkingEnabled,
        'context_length': contextLength,
        'cpu_weights': cpuWeights?.name,
        'trust_remote_code': trustRemoteCode,
        'kv_bits': kvBits,
        'memory_limit_bytes': memoryLimitBytes,
        'prefix_cache_bytes': prefixCacheBytes,
        'prefix_cache_path': prefixCachePath,
        'prompt_lookup': promptLookup,
        'draft_model_path': draftModelPath,
        'draft_tokens': draftTokens,
        'adapter_path': adapterPath,
        'adapters': adapters,
        'generation': generation?.toJson(),
        'min_pixels': minPixels,
        'max_pixels': maxPixels,
        'image_cache_bytes': imageCacheBytes,
      });
}

/// Bounds of the requests that name it in `profile`.
final class Profile {
  const Profile({this.maxTokens, this.maxPixels});

  /// The most tokens of an answer, reasoning included.
  final int? maxTokens;

  /// Images are made smaller than this.
  final int? maxPixels;

  Json toJson() => withoutNulls({
        'max_tokens': maxTokens,
        'max_pixels': maxPixels,
      });
}

/// Where and how to serve a model, and others. What is null is left to the library, whose defaults are named here.
final class ServerConfig {
  const ServerConfig({
    this.host,
    this.port,
    this.uds,
    this.modelId,
    this.queueLimit,
    this.suspendedRequests,
    this.apiKey,
    this.allowedHosts,
    this.allowedOrigins,
    this.imageUrls,
    this.allowedImagePaths,
    this.bodyLimitBytes,
    this.models,
    this.modelsFile,
    this.modelStore,
    this.keepAlive,
    this.memoryLimitBytes,
    this.profiles,
  });

  /// The address to bind; `127.0.0.1` by default.
  final String? host;

  /// The port to bind; 0, the default, picks a free one.
  final int? port;

  /// Path of a Unix socket to listen on instead, open to this user alone. `LibMlxOpenAiClient` cannot reach it.
  final String? uds;

  /// The name clients use; the model's own by default.
  final String? modelId;

  /// Requests in flight at once, running and waiting; one more is refused with `queue_full`. 64 by default.
  final int? queueLimit;

  /// What requests do while the model is suspended; [SuspendedRequests.wait] by default.
  final SuspendedRequests? suspendedRequests;

  /// What clients must send; `auto` makes one up, which `ServerStatus.apiKey` tells once. None by default.
  final String? apiKey;

  /// Further names that the Host header may have, beside addresses, localhost and [host]; `*` is any.
  final List<String>? allowedHosts;

  /// Web pages that may call the server, such as `https://example.org`; `*` is any. None by default.
  final List<String>? allowedOrigins;

  /// Which http(s) URLs of images are fetched; [ImageUrls.none] by default.
  final ImageUrls? imageUrls;

  /// Folders from which requests may name images, by path or file URL; none by default.
  final List<String>? allowedImagePaths;

  /// A larger request body is refused with `payload_too_large`; 32 MiB by default.
  final int? bodyLimitBytes;

  /// Further models, loaded at their first use.
  final List<ServedModelConfig>? models;

  /// A TOML file with tables `[[models]]` of the same keys in snake_case.
  final String? modelsFile;

  /// Serve every model of the store and the Hugging Face cache; false by default.
  final bool? modelStore;

  /// Unload a further model after so long without a request; never if negative, and by default.
  final Duration? keepAlive;

  /// The most that all models may take; those used least recently go first. What the machine has by default.
  final int? memoryLimitBytes;

  /// Bounds that a request's `profile` names, beside the built-in `fast`, `balanced` and `quality` or in their place.
  final Map<String, Profile>? profiles;

  Json toJson() => withoutNulls({
        'host': host,
        'port': port,
        'uds': uds,
        'model_id': modelId,
        'queue_limit': queueLimit,
        'suspended_requests': suspendedRequests?.name,
        'api_key': apiKey,
        'allowed_hosts': allowedHosts,
        'allowed_origins': allowedOrigins,
        'image_urls': imageUrls?.name,
        'allowed_image_paths': allowedImagePaths,
        'body_limit_bytes': bodyLimitBytes,
        'models': models?.map((model) => model.toJson()).toList(),
        'models_file': modelsFile,
        'model_store': modelStore,
        'keep_alive': _seconds(keepAlive),
        'memory_limit_bytes': memoryLimitBytes,
        'profiles':
            profiles?.map((name, profile) => MapEntry(name, profile.toJson())),
      });
}

double? _seconds(Duration? duration) =>
    duration == null ? null : duration.inMicroseconds / 1e6;
