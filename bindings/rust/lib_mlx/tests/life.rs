//! The crate over the real library and a crafted model, whose answer the first word of a message chooses.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{config, model_path};
use lib_mlx::{
    ChatRequest, Client, CpuWeights, ErrorCode, GenerationDefaults, KeepAlive, LoadConfig, Model, ModelState,
    ResponseRequest, ServedModel, ServerConfig, ServerState,
};

fn load_error(config: &LoadConfig) -> ErrorCode {
    Model::load(config).unwrap_err().code
}

fn served(path: &str) -> (Model, Client) {
    let model = Model::load(&config(path)).unwrap();
    let client = model.start_server(&ServerConfig::default()).unwrap().client();
    (model, client)
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn chat(script: &str) -> ChatRequest {
    ChatRequest::new("crafted").user(script)
}

#[test]
fn types_may_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<Model>();
    check::<Client>();
    check::<lib_mlx::Error>();
    check::<lib_mlx::Canceller>();
    check::<lib_mlx::ChatStream>();
}

#[test]
fn the_library_fits() {
    let version = lib_mlx::version().unwrap();
    assert_eq!((version.version.as_str(), version.abi_version), (lib_mlx_sys::LIB_MLX_VERSION, lib_mlx::ABI_VERSION));
    assert!(version.python_version.is_some());
}

#[test]
fn mistakes_are_typed_errors() {
    assert_eq!(load_error(&LoadConfig::new("/does/not/exist")), ErrorCode::ModelNotFound);
    assert_eq!(load_error(&LoadConfig::new("/nul\0 in it")), ErrorCode::ModelNotFound);
    assert_eq!(load_error(&LoadConfig::new("")), ErrorCode::InvalidArgument);
    assert_eq!(load_error(&LoadConfig::new("x").kv_bits(5)), ErrorCode::InvalidArgument);
    let error = Model::load(&LoadConfig::new("x").set("modle_id", "y")).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(error.to_string(), "invalid_argument: Unknown key 'modle_id'. Did you mean 'model_id'?");
}

#[test]
fn a_load_shows_its_progress() {
    let Some(path) = model_path() else { return };
    let model = Model::load(&config(&path).wait(false).cpu_weights(CpuWeights::Auto)).unwrap();
    until("loaded", || model.status().unwrap().model.state != ModelState::Loading);
    let status = model.status().unwrap();
    assert_eq!((status.handle, status.model.state), (model.handle(), ModelState::Ready));
    assert_eq!((status.model.model_id.as_str(), status.model.model_path.as_str()), ("crafted", path.as_str()));
    assert!(status.model.context_length.unwrap() > 0 && status.model.error.is_none());
    assert_eq!(status.server.state, ServerState::Stopped);
}

#[test]
fn a_failed_load_tells_why() {
    let model = Model::load(&LoadConfig::new("/does/not/exist").wait(false)).unwrap();
    until("failed", || model.status().unwrap().model.state == ModelState::Failed);
    assert_eq!(model.status().unwrap().model.error.unwrap().code, ErrorCode::ModelNotFound);
    assert_eq!(model.start_server(&ServerConfig::default()).unwrap_err().code, ErrorCode::ModelNotFound);
}

#[test]
fn a_model_lives_and_is_unloaded() {
    let Some(path) = model_path() else { return };
    let model = Model::load(&config(&path)).unwrap();
    let server = model.start_server(&ServerConfig::default().model_id("m \"é\"")).unwrap();
    assert_eq!(server.status.model_id.as_deref(), Some("m \"é\""));
    assert_eq!(model.start_server(&ServerConfig::default()).unwrap().base_url(), server.base_url());
    model.suspend().unwrap();
    assert_eq!(model.status().unwrap().model.state, ModelState::Suspended);
    model.resume().unwrap();
    let other = Model::load(&config(&path)).unwrap();
    let taken = ServerConfig::default().port(server.status.port.unwrap());
    assert_eq!(other.start_server(&taken).unwrap_err().code, ErrorCode::AddressInUse);
    model.stop_server().unwrap();
    model.stop_server().unwrap();
    assert_eq!(server.client().health().unwrap_err().code, ErrorCode::Connection);
    assert!(model.unload().unwrap().before_bytes > 0);
}

#[test]
fn every_key_is_accepted() {
    let Some(path) = model_path() else { return };
    let load = config(&path).thinking_enabled(true).lazy_encoders(true).context_length(512).trust_remote_code(false);
    let defaults =
        GenerationDefaults::default().temperature(0.0).top_p(1.0).top_k(0).min_p(0.0).repetition_penalty(1.0);
    let load = load.generation(defaults.max_tokens(9));
    let load = load.kv_bits(8).memory_limit_bytes(1 << 33).prefix_cache_bytes(0).cpu_weights(CpuWeights::Float32);
    let model = Model::load(&load).unwrap();
    assert_eq!(model.status().unwrap().model.context_length, Some(512));
    let further = ServedModel::new(&path).model_id("further").pinned(false).keep_alive(KeepAlive::Forever).kv_bits(4);
    let server = ServerConfig::default().host("127.0.0.1").port(0).queue_limit(1).api_key("k").models(vec![further]);
    let server = server.allowed_hosts(vec!["*".into()]).allowed_origins(vec![]).body_limit_bytes(4096);
    let server = server.model_store(false).keep_alive(KeepAlive::For(Duration::from_millis(1500)));
    let server = server.memory_limit_bytes(1 << 33).profile("tiny", Some(2), None).profile("small", None, Some(9));
    let client = model.start_server(&server).unwrap().client();
    let request = chat("hello").set("profile", "tiny");
    assert_eq!(
        client.api_key("k").chat(&request).unwrap().last().unwrap().unwrap().usage.unwrap().completion_tokens,
        2
    );
}

#[test]
fn chat_streams() {
    let Some(path) = model_path() else { return };
    let (_model, client) = served(&path);
    for (script, text, tokens) in
        [("hello", "Hello, I am a crafted model.", 9), ("unicode", "café 日本語 👩\u{200d}💻 ok", 12)]
    {
        let chunks: Vec<_> = client.chat(&chat(script)).unwrap().map(Result::unwrap).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), text);
        assert_eq!(chunks.iter().find_map(|chunk| chunk.finish_reason.as_deref()), Some("stop"));
        assert_eq!(chunks.last().unwrap().usage.unwrap().completion_tokens, tokens);
    }
    let reasoning: String = client.chat(&chat("think")).unwrap().map(|chunk| chunk.unwrap().reasoning).collect();
    assert!(reasoning.contains("Let me think"));
    let whole = client.post("/v1/chat/completions", &chat("hello").to_json()).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"].as_str(), Some("Hello, I am a crafted model."));
}

#[test]
fn responses_stream() {
    let Some(path) = model_path() else { return };
    let (_model, client) = served(&path);
    let events: Vec<_> =
        client.respond(&ResponseRequest::new("crafted", "hello")).unwrap().map(Result::unwrap).collect();
    assert_eq!(events.iter().filter_map(|event| event.text()).collect::<String>(), "Hello, I am a crafted model.");
    let last = events.last().unwrap();
    assert_eq!((last.kind.as_str(), last.usage().unwrap().completion_tokens), ("response.completed", 9));
}

#[test]
fn a_dropped_stream_is_cancelled() {
    let Some(path) = model_path() else { return };
    let (_model, client) = served(&path);
    let mut stream = client.chat(&chat("loop")).unwrap();
    assert!(stream.next().unwrap().is_ok());
    assert_eq!(client.health().unwrap().in_flight, 1);
    drop(stream);
    until("cancelled", || client.health().unwrap().in_flight == 0);
}

#[test]
fn another_thread_cancels_a_stream() {
    let Some(path) = model_path() else { return };
    let (_model, client) = served(&path);
    let mut stream = client.respond(&ResponseRequest::new("crafted", "loop")).unwrap();
    assert!(stream.next().unwrap().is_ok());
    let canceller = stream.canceller().unwrap().unwrap();
    let reader = thread::spawn(move || stream.last().unwrap());
    canceller.cancel();
    assert_eq!(reader.join().unwrap().unwrap_err().code, ErrorCode::Cancelled);
    until("cancelled", || client.health().unwrap().in_flight == 0);
}

#[test]
fn refusals_of_the_server_are_typed() {
    let Some(path) = model_path() else { return };
    let (_model, client) = served(&path);
    let error = client.chat(&ChatRequest::new("other").user("hello")).unwrap_err();
    assert_eq!((error.code, error.status), (ErrorCode::ModelNotFound, Some(404)));
    let error = client.chat(&chat("hello").set("surprise", 1)).unwrap_err();
    assert_eq!((error.code, error.status), (ErrorCode::InvalidArgument, Some(400)));
    let error = client.get("/nowhere").unwrap_err();
    assert_eq!((error.code, error.status), (ErrorCode::NotFound, Some(404)));
}

#[test]
fn keys_and_unix_sockets() {
    let Some(path) = model_path() else { return };
    let model = Model::load(&config(&path)).unwrap();
    let socket = std::env::temp_dir().join(format!("lib_mlx_{}.sock", std::process::id()));
    let server = ServerConfig::default().uds(socket.to_str().unwrap()).api_key("auto");
    let server = model.start_server(&server).unwrap();
    assert_eq!(server.client().get("/v1/models").unwrap()["data"][0]["id"].as_str(), Some("crafted"));
    let stranger = server.client().api_key("wrong");
    assert_eq!(stranger.get("/v1/models").unwrap_err().code, ErrorCode::Unauthorized);
}

#[test]
fn unloading_ends_streams_with_an_error() {
    let Some(path) = model_path() else { return };
    let (model, client) = served(&path);
    let mut chat = client.chat(&chat("loop")).unwrap();
    let mut response = client.respond(&ResponseRequest::new("crafted", "loop")).unwrap();
    assert!(chat.next().unwrap().is_ok() && response.next().unwrap().is_ok());
    let chat = thread::spawn(move || chat.last().unwrap());
    let response = thread::spawn(move || response.last().unwrap());
    model.unload().unwrap();
    assert_eq!(chat.join().unwrap().unwrap_err().code, ErrorCode::ShuttingDown);
    // The code that the Responses API has for it.
    assert_eq!(response.join().unwrap().unwrap_err().code.as_str(), "server_error");
}

#[test]
fn many_threads_at_once() {
    let Some(path) = model_path() else { return };
    let (model, client) = served(&path);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(model.status().unwrap().server.state, ServerState::Running);
                    assert_eq!(load_error(&LoadConfig::new("").wait(false)), ErrorCode::InvalidArgument);
                    let text: String = client.chat(&chat("hello")).unwrap().map(|chunk| chunk.unwrap().text).collect();
                    assert_eq!(text, "Hello, I am a crafted model.");
                }
            });
        }
    });
}
