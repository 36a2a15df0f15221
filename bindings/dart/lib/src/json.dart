import 'dart:convert';

/// A JSON object.
typedef Json = Map<String, Object?>;

/// What [json] says, without the keys whose value is null: they are left to the library.
Json withoutNulls(Json json) => json..removeWhere((_, value) => value == null);

/// The object that [text] is; a [FormatException] if it is none.
Json parseObject(String text) => switch (jsonDecode(text)) {
      final Json object => object,
      _ => throw FormatException('not a JSON object', text),
    };

/// The objects of a list.
List<Json> objects(Object? list) => (list! as List<Object?>).cast<Json>();
