//! What the client makes of servers that misbehave: each test's server plays a script of bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lib_mlx::json::Json;
use lib_mlx::{ChatRequest, Client, ErrorCode, ResponseRequest};

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A server for one connection.
fn server(play: impl FnOnce(TcpStream) + Send + 'static) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(&format!("http://{}/v1", listener.local_addr().unwrap()));
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = socket.read(&mut request);
        play(socket);
    });
    client
}

fn says(answer: &'static str) -> Client {
    server(move |mut socket| {
        // One byte at a time: borders may fall anywhere.
        for byte in answer.bytes() {
            let _ = socket.write_all(&[byte]);
        }
    })
}

fn chat() -> ChatRequest {
    ChatRequest::new("m").user("hi")
}

#[test]
fn events_of_any_shape() {
    let text = ": hi\n\ndata: {\"a\": 1}\r\n\r\nevent: x\ndata:one\ndata: two\nid: 7\n\nevent: no data\n\ndata: é\n\n\
                data: [DONE]\n\ndata: more\n\n";
    for size in 1..text.len() {
        let client = server(move |mut socket| {
            let _ = socket.write_all(STREAM.as_bytes());
            for chunk in text.as_bytes().chunks(size) {
                let _ = write!(socket, "{:X};x=y\r\n", chunk.len());
                let _ = socket.write_all(chunk);
                let _ = socket.write_all(b"\r\n");
            }
            let _ = socket.write_all(b"0\r\n\r\n");
        });
        let events: Vec<_> = client.post_stream("/", &Json::object()).unwrap().map(Result::unwrap).collect();
        let events: Vec<_> = events.iter().map(|event| (event.name.as_deref(), event.data.as_str())).collect();
        assert_eq!(events, [(None, "{\"a\": 1}"), (Some("x"), "one\ntwo"), (None, "é")]);
    }
}

#[test]
fn a_server_gone_in_mid_stream_is_an_error_and_the_end() {
    let client = server(|mut socket| {
        let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let _ = write!(socket, "{STREAM}{:x}\r\n{chunk}\r\n20\r\ndata: ", chunk.len());
    });
    let mut stream = client.chat(&chat()).unwrap();
    assert_eq!(stream.next().unwrap().unwrap().text, "a");
    let error = stream.next().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Connection);
    assert!(std::error::Error::source(&error).is_some());
    assert!(stream.next().is_none());
}

#[test]
fn errors_in_a_stream_are_typed() {
    let chat_error = says(
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\": {\"message\": \"no\", \"type\": \"t\", \"code\": \"shutting_down\"}}\n\n\
         data: [DONE]\n\n",
    );
    let mut stream = chat_error.chat(&chat()).unwrap();
    assert_eq!(stream.next().unwrap().unwrap_err().code, ErrorCode::ShuttingDown);
    assert!(stream.next().is_none() && stream.canceller().is_none());
    let response_error = says(
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"type\": \"response.failed\", \"response\": {\"error\": {\"code\": \"x\", \
         \"message\": \"no\"}}}\n\n",
    );
    let mut stream = response_error.respond(&ResponseRequest::new("m", "hi")).unwrap();
    assert_eq!(stream.next().unwrap().unwrap_err().code, ErrorCode::Other("x".into()));
    let nonsense = says("HTTP/1.1 200 OK\r\n\r\ndata: {nonsense\n\n");
    assert_eq!(nonsense.chat(&chat()).unwrap().next().unwrap().unwrap_err().code, ErrorCode::InvalidAnswer);
}

#[test]
fn malformed_answers_are_errors() {
    for (answer, code) in [
        ("", ErrorCode::Connection),
        ("nonsense\r\n\r\n", ErrorCode::Connection),
        ("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", ErrorCode::Connection),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", ErrorCode::Connection),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ErrorCode::Connection),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\u{1}\u{1}", ErrorCode::InvalidAnswer),
        ("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", ErrorCode::InvalidAnswer),
    ] {
        assert_eq!(says(answer).get("/").unwrap_err().code, code, "{answer}");
    }
    assert_eq!(Client::new("http://127.0.0.1:1").get("/").unwrap_err().code, ErrorCode::Connection);
}

#[test]
fn dropping_a_stream_closes_its_connection() {
    let (closed, wait) = mpsc::channel();
    let client = server(move |mut socket| {
        let _ = write!(socket, "{STREAM}");
        closed.send(socket.read(&mut [0; 1]).map(|count| count == 0).unwrap_or(true)).unwrap();
    });
    drop(client.chat(&chat()).unwrap());
    assert!(wait.recv_timeout(Duration::from_secs(10)).unwrap());
}

#[test]
fn another_thread_can_cancel() {
    let client = server(|mut socket| {
        let _ = write!(socket, "{STREAM}");
        let _ = socket.read(&mut [0; 1]);
    });
    let mut stream = client.chat(&chat()).unwrap();
    let canceller = stream.canceller().unwrap().unwrap();
    let waiting = thread::spawn(move || (stream.next(), stream.next().is_none()));
    thread::sleep(Duration::from_millis(50));
    canceller.cancel();
    let (item, ended) = waiting.join().unwrap();
    assert_eq!(item.unwrap().unwrap_err().code, ErrorCode::Cancelled);
    assert!(ended);
    canceller.cancel();
}
