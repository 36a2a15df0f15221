import 'dart:async';
import 'dart:convert';

/// One event of a stream.
final class ServerSentEvent {
  const ServerSentEvent({required this.data, this.name = 'message', this.id = ''});

  /// The event's name; `message` if it has none.
  final String name;

  /// Its lines of data, joined by line feeds.
  final String data;

  /// The last id that the stream has given so far.
  final String id;
}

/// The events of [bytes], read as https://html.spec.whatwg.org/multipage/server-sent-events.html has it.
///
/// Bytes may be cut anywhere, inside a character or a line end too. An event that the stream's end cuts off is dropped.
Stream<ServerSentEvent> serverSentEvents(Stream<List<int>> bytes) =>
    Stream<ServerSentEvent>.eventTransformed(
      bytes
          .cast<List<int>>()
          .transform(const Utf8Decoder(allowMalformed: true))
          .transform(const LineSplitter()),
      _EventSink.new,
    );

/// Makes events of lines.
final class _EventSink implements EventSink<String> {
  _EventSink(this._events);

  final EventSink<ServerSentEvent> _events;
  final List<String> _data = [];
  String _name = '';
  String _id = '';

  @override
  void add(String line) {
    if (line.isEmpty) return _dispatch();
    final colon = line.indexOf(':');
    final field = colon < 0 ? line : line.substring(0, colon);
    final value = colon < 0 ? '' : line.substring(colon + 1);
    _take(field, value.startsWith(' ') ? value.substring(1) : value);
  }

  /// A comment is a field without a name, which is unknown like any other.
  void _take(String field, String value) {
    switch (field) {
      case 'event':
        _name = value;
      case 'data':
        _data.add(value);
      case 'id' when !value.contains('\u0000'):
        _id = value;
    }
  }

  void _dispatch() {
    if (_data.isNotEmpty) {
      _events.add(ServerSentEvent(
        name: _name.isEmpty ? 'message' : _name,
        data: _data.join('\n'),
        id: _id,
      ));
    }
    _name = '';
    _data.clear();
  }

  @override
  void addError(Object error, [StackTrace? stackTrace]) =>
      _events.addError(error, stackTrace);

  @override
  void close() => _events.close();
}
