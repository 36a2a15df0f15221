//! JSON is read strictly and written safely.

use lib_mlx::json::Json;

#[test]
fn strings() {
    for (json, text) in [
        (r#""""#, ""),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u0041\u00e9\u65e5\u0000""#, "Aé日\0"),
        (r#""\uD83d\uDe00!""#, "😀!"),
        (r#""\ud83d""#, "\u{fffd}"),
        (r#""\ude00\ud83d\ud83d\ude00\ud83d\n""#, "\u{fffd}\u{fffd}😀\u{fffd}\n"),
        ("\"café 日本語\"", "café 日本語"),
    ] {
        assert_eq!(Json::parse(json).unwrap().as_str(), Some(text), "{json}");
    }
}

#[test]
fn numbers() {
    for (json, value) in [
        ("0", Json::Integer(0)),
        ("-12", Json::Integer(-12)),
        ("9223372036854775807", Json::Integer(i64::MAX)),
        ("-9223372036854775808", Json::Integer(i64::MIN)),
        ("9223372036854775808", Json::Number(9223372036854775808.0)),
        ("0.5", Json::Number(0.5)),
        ("-1.25E2", Json::Number(-125.0)),
        ("1e3", Json::Number(1000.0)),
        ("5e-324", Json::Number(5e-324)),
    ] {
        assert_eq!(Json::parse(json), Some(value), "{json}");
    }
}

#[test]
fn malformed_texts_are_refused() {
    for json in [
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "[1,]",
        "{,}",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "{1:1}",
        "[1 2]",
        "nul",
        "nulL",
        "truefalse",
        "tru",
        "01",
        "-",
        "-01",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "Infinity",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u+123\"",
        "\"\\",
        "\"\\ué12\"",
        "\"\n\"",
        "\"\t\"",
        "{} {}",
        "1 1",
        "'a'",
        "{\"a\":}",
        "[\"a\":1]",
        "\u{feff}{}",
        "/**/1",
        "\0",
        "1\0",
        "\"a\0\"",
    ] {
        assert_eq!(Json::parse(json), None, "{json:?}");
    }
    let answer = r#"{"ok": true, "model": {"progress": 0.5, "stage": "we\u00e9\"ights é", "error": null}}"#;
    assert!(Json::parse(answer).is_some());
    for (end, _) in answer.char_indices() {
        assert_eq!(Json::parse(&answer[..end]), None, "{end}");
    }
}

#[test]
fn depth_is_bounded() {
    assert!(Json::parse(&("[".repeat(128) + &"]".repeat(128))).is_some());
    assert!(Json::parse(&("[".repeat(100_000) + &"]".repeat(100_000))).is_none());
    assert!(Json::parse(&"{\"a\":".repeat(100_000)).is_none());
}

#[test]
fn the_last_of_equal_keys_counts_and_set_replaces() {
    let mut json = Json::parse(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap();
    assert_eq!(json["a"], Json::Integer(3));
    json.set("a", vec![true, false]);
    assert_eq!(json.to_string(), r#"{"b":2,"a":[true,false]}"#);
}

#[test]
fn what_is_written_is_read_again() {
    let every: String = (0..0x250).chain(0x1f600..0x1f610).filter_map(char::from_u32).collect();
    let mut json = Json::object();
    json.set(&every, vec![every.clone(), String::new()]);
    for value in [0.1, -2.5e-300, 1e300, 5e-324, f64::MAX, 0.0, 3.0] {
        json.set(&value.to_string(), value);
    }
    json.set("nothing", Json::Null);
    json.set("whole", i64::MIN);
    let written = json.to_string();
    assert_eq!(Json::parse(&written), Some(json));
    assert!(!written.contains(['\0', '\n']));
    assert_eq!(Json::from(vec![f64::NAN, f64::INFINITY]).to_string(), "[null,null]");
}
