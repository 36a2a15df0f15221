/// A local language model inside your app: see [LibMlxRuntime] and [LibMlxOpenAiClient].
library;

export 'src/chat.dart';
export 'src/config.dart';
export 'src/errors.dart';
export 'src/open_ai_client.dart';
export 'src/responses.dart';
export 'src/runtime.dart';
export 'src/server_sent_events.dart';
export 'src/status.dart';
