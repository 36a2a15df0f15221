import 'dart:convert';
import 'dart:ffi';
import 'dart:io';

import 'package:ffi/ffi.dart';

import 'bindings.dart';
import 'errors.dart';
import 'json.dart';

/// The C functions with objects in place of strings: every string is released, every error thrown.
///
/// Most of them block the isolate that calls them.
final class Library {
  Library.open(String? path)
      : _bindings = LibMlxBindings(DynamicLibrary.open(path ?? _defaultPath));

  final LibMlxBindings _bindings;

  static String get _defaultPath =>
      Platform.isMacOS ? 'liblib_mlx.dylib' : 'liblib_mlx.so';

  Json loadModel(Json config) => _withText(
      config, (text) => _answer(_bindings.lib_mlx_load_model(text)));

  Json startServer(int handle, Json config) => _withText(
      config, (text) => _answer(_bindings.lib_mlx_start_server(handle, text)));

  Json stopServer(int handle) => _answer(_bindings.lib_mlx_stop_server(handle));

  Json serverStatus(int handle) =>
      _answer(_bindings.lib_mlx_server_status(handle));

  Json unloadModel(int handle) =>
      _answer(_bindings.lib_mlx_unload_model(handle));

  Json suspend(int handle) => _answer(_bindings.lib_mlx_suspend(handle));

  Json resume(int handle) => _answer(_bindings.lib_mlx_resume(handle));

  Json shutdown() => _answer(_bindings.lib_mlx_shutdown());

  Json version() => _answer(_bindings.lib_mlx_version());

  Json _withText(Json config, Json Function(Pointer<Char> text) call) {
    final text = jsonEncode(config).toNativeUtf8();
    try {
      return call(text.cast());
    } finally {
      malloc.free(text);
    }
  }

  Json _answer(Pointer<Char> answer) {
    if (answer == nullptr) {
      throw const LibMlxException(LibMlxErrorCode.insufficientMemory,
          'The process has run out of memory.');
    }
    try {
      final json = parseObject(answer.cast<Utf8>().toDartString());
      if (json['ok'] == true) return json;
      throw LibMlxException.fromJson(json['error']! as Json);
    } finally {
      _bindings.lib_mlx_free(answer.cast());
    }
  }
}
