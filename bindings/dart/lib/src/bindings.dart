// Written as `dart run ffigen --config ffigen.yaml` writes it, and compared with the header by a test.
// ignore_for_file: type=lint
import 'dart:ffi' as ffi;

/// The functions of lib_mlx.h, where they are documented.
class LibMlxBindings {
  /// Holds the symbol lookup function.
  final ffi.Pointer<T> Function<T extends ffi.NativeType>(String symbolName)
      _lookup;

  /// The symbols are looked up in [dynamicLibrary].
  LibMlxBindings(ffi.DynamicLibrary dynamicLibrary)
      : _lookup = dynamicLibrary.lookup;

  /// The symbols are looked up with [lookup].
  LibMlxBindings.fromLookup(
      ffi.Pointer<T> Function<T extends ffi.NativeType>(String symbolName)
          lookup)
      : _lookup = lookup;

  ffi.Pointer<ffi.Char> lib_mlx_load_model(
    ffi.Pointer<ffi.Char> config_json,
  ) {
    return _lib_mlx_load_model(
      config_json,
    );
  }

  late final _lib_mlx_load_modelPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Pointer<ffi.Char>)>>('lib_mlx_load_model');
  late final _lib_mlx_load_model = _lib_mlx_load_modelPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(ffi.Pointer<ffi.Char>)>();

  ffi.Pointer<ffi.Char> lib_mlx_start_server(
    int handle,
    ffi.Pointer<ffi.Char> config_json,
  ) {
    return _lib_mlx_start_server(
      handle,
      config_json,
    );
  }

  late final _lib_mlx_start_serverPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64, ffi.Pointer<ffi.Char>)>>('lib_mlx_start_server');
  late final _lib_mlx_start_server = _lib_mlx_start_serverPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int, ffi.Pointer<ffi.Char>)>();

  ffi.Pointer<ffi.Char> lib_mlx_stop_server(
    int handle,
  ) {
    return _lib_mlx_stop_server(
      handle,
    );
  }

  late final _lib_mlx_stop_serverPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64)>>('lib_mlx_stop_server');
  late final _lib_mlx_stop_server = _lib_mlx_stop_serverPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int)>();

  ffi.Pointer<ffi.Char> lib_mlx_server_status(
    int handle,
  ) {
    return _lib_mlx_server_status(
      handle,
    );
  }

  late final _lib_mlx_server_statusPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64)>>('lib_mlx_server_status');
  late final _lib_mlx_server_status = _lib_mlx_server_statusPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int)>();

  ffi.Pointer<ffi.Char> lib_mlx_unload_model(
    int handle,
  ) {
    return _lib_mlx_unload_model(
      handle,
    );
  }

  late final _lib_mlx_unload_modelPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64)>>('lib_mlx_unload_model');
  late final _lib_mlx_unload_model = _lib_mlx_unload_modelPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int)>();

  ffi.Pointer<ffi.Char> lib_mlx_suspend(
    int handle,
  ) {
    return _lib_mlx_suspend(
      handle,
    );
  }

  late final _lib_mlx_suspendPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64)>>('lib_mlx_suspend');
  late final _lib_mlx_suspend = _lib_mlx_suspendPtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int)>();

  ffi.Pointer<ffi.Char> lib_mlx_resume(
    int handle,
  ) {
    return _lib_mlx_resume(
      handle,
    );
  }

  late final _lib_mlx_resumePtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function(ffi.Int64)>>('lib_mlx_resume');
  late final _lib_mlx_resume = _lib_mlx_resumePtr
      .asFunction<ffi.Pointer<ffi.Char> Function(int)>();

  ffi.Pointer<ffi.Char> lib_mlx_shutdown() {
    return _lib_mlx_shutdown();
  }

  late final _lib_mlx_shutdownPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function()>>('lib_mlx_shutdown');
  late final _lib_mlx_shutdown = _lib_mlx_shutdownPtr
      .asFunction<ffi.Pointer<ffi.Char> Function()>();

  ffi.Pointer<ffi.Char> lib_mlx_version() {
    return _lib_mlx_version();
  }

  late final _lib_mlx_versionPtr = _lookup<
      ffi.NativeFunction<
          ffi.Pointer<ffi.Char> Function()>>('lib_mlx_version');
  late final _lib_mlx_version = _lib_mlx_versionPtr
      .asFunction<ffi.Pointer<ffi.Char> Function()>();

  void lib_mlx_free(
    ffi.Pointer<ffi.Void> ptr,
  ) {
    return _lib_mlx_free(
      ptr,
    );
  }

  late final _lib_mlx_freePtr = _lookup<
      ffi.NativeFunction<
          ffi.Void Function(ffi.Pointer<ffi.Void>)>>('lib_mlx_free');
  late final _lib_mlx_free = _lib_mlx_freePtr
      .asFunction<void Function(ffi.Pointer<ffi.Void>)>();
}

const String LIB_MLX_VERSION = '0.1.0';

const int LIB_MLX_ABI_VERSION = 1;
