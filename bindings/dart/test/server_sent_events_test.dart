import 'dart:convert';

import 'package:lib_mlx/lib_mlx.dart';
import 'package:test/test.dart';

Future<List<(String, String, String)>> read(List<List<int>> pieces) async => [
      await for (final event in serverSentEvents(Stream.fromIterable(pieces)))
        (event.name, event.data, event.id),
    ];

void main() {
  final cases = <String, List<(String, String, String)>>{
    'data: a\n\n': [('message', 'a', '')],
    'data: a\r\rdata: b\r\n\r\n': [('message', 'a', ''), ('message', 'b', '')],
    'data: a\ndata:b\ndata\n\n': [('message', 'a\nb\n', '')],
    'data:  a: b\n\n': [('message', ' a: b', '')],
    'event: ping\ndata: {}\n\ndata: x\n\n': [
      ('ping', '{}', ''),
      ('message', 'x', ''),
    ],
    ': keep-alive\n\n:\n\ndata: a\n: in between\n\n': [('message', 'a', '')],
    'event: lonely\n\ndata: a\n\n': [('message', 'a', '')],
    'id: 1\ndata: a\n\ndata: b\n\n': [('message', 'a', '1'), ('message', 'b', '1')],
    'id: 1\u0000\ndata: a\n\n': [('message', 'a', '')],
    '\uFEFFdata: a\n\n': [('message', 'a', '')],
    'data: cut off\n': [],
  };
  cases.forEach((stream, events) {
    test('${jsonEncode(stream)} is read as the standard has it', () async {
      expect(await read([utf8.encode(stream)]), events);
    });
  });

  test('wherever a stream is cut, its events are the same', () async {
    final bytes = utf8.encode('event: a\r\ndata: é日\r\ndata: 👩\u200D💻\r\n\r\n:c\r\rdata: x\n\n');
    final whole = await read([bytes]);
    expect(whole, [('a', 'é日\n👩\u200D💻', ''), ('message', 'x', '')]);
    for (var cut = 0; cut <= bytes.length; cut++) {
      expect(await read([bytes.sublist(0, cut), bytes.sublist(cut)]), whole);
    }
  });
}
