import 'dart:io';

import 'package:flutter/material.dart';

import 'chat_page.dart';

/// `LIB_MLX_LIBRARY` in the environment names the library, if the app does not bring it.
void main() => runApp(MaterialApp(
      title: 'lib_mlx',
      home: ChatPage(libraryPath: Platform.environment['LIB_MLX_LIBRARY']),
    ));
