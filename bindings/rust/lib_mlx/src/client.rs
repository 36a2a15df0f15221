//! A client of the server, and of any other that speaks OpenAI's HTTP API without TLS.

use std::io::Read;

use crate::error::{Error, ErrorCode, Result};
use crate::http::{self, Body, Endpoint};
use crate::json::Json;
use crate::model::Server;
use crate::requests::{ChatRequest, ResponseRequest};
use crate::sse::Events;
use crate::streams::{ChatStream, ResponseStream};

/// Sends requests, each over a connection of its own. Calls block; a client may be used from any thread at once.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    api_key: Option<String>,
}

/// What `GET /health` tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// "ok", while requests are answered.
    pub status: String,
    /// Requests running and waiting.
    pub in_flight: i64,
    /// The models that are loaded.
    pub models: Vec<String>,
}

impl Client {
    /// For a server at a URL such as `http://127.0.0.1:49152`.
    pub fn new(base_url: &str) -> Self {
        let rest = base_url.strip_prefix("http://").unwrap_or(base_url);
        let authority = rest.split('/').next().unwrap_or_default();
        Client { endpoint: Endpoint::Tcp(authority.to_owned()), api_key: None }
    }

    pub(crate) fn of(server: &Server) -> Self {
        let client = match &server.status.uds {
            Some(path) => Client { endpoint: Endpoint::Unix(path.into()), api_key: None },
            None => Client::new(server.base_url()),
        };
        Client { api_key: server.api_key.clone(), ..client }
    }

    /// Sends this key with every request.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// `GET`s a JSON object.
    pub fn get(&self, path: &str) -> Result<Json> {
        read_json(self.send("GET", path, "")?)
    }

    /// `POST`s a JSON object and returns the one that answers it.
    pub fn post(&self, path: &str, body: &Json) -> Result<Json> {
        read_json(self.send("POST", path, &body.to_string())?)
    }

    /// `POST`s a JSON object that asks for a stream and returns its events. Returns when the stream begins.
    pub fn post_stream(&self, path: &str, body: &Json) -> Result<Events> {
        self.send("POST", path, &body.to_string()).map(Events::new)
    }

    /// Streams a chat completion. Returns when the stream begins; dropping it cancels the request.
    pub fn chat(&self, request: &ChatRequest) -> Result<ChatStream> {
        self.post_stream("/v1/chat/completions", &request.to_streaming_json()).map(ChatStream::new)
    }

    /// Streams a response (`POST /v1/responses`). Returns when the stream begins; dropping it cancels the request.
    pub fn respond(&self, request: &ResponseRequest) -> Result<ResponseStream> {
        self.post_stream("/v1/responses", &request.to_streaming_json()).map(ResponseStream::new)
    }

    /// How the server is.
    pub fn health(&self) -> Result<Health> {
        let json = self.get("/health")?;
        Ok(Health {
            status: json["status"].to_text(),
            in_flight: json["in_flight"].as_i64().unwrap_or_default(),
            models: json["models"].items().iter().map(Json::to_text).collect(),
        })
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Result<Body> {
        match http::send(&self.endpoint, method, path, self.api_key.as_deref(), body)? {
            (200..=299, body) => Ok(body),
            (status, body) => Err(read_error(status, body)),
        }
    }
}

fn read_text(mut body: Body) -> Result<String> {
    let mut text = String::new();
    body.read_to_string(&mut text)?;
    Ok(text)
}

fn read_json(body: Body) -> Result<Json> {
    Json::parse(&read_text(body)?).ok_or_else(|| Error::invalid_answer("The server's answer"))
}

fn read_error(status: u16, body: Body) -> Error {
    let json = read_text(body).ok().and_then(|text| Json::parse(&text)).unwrap_or_default();
    let mut error = match &json["error"] {
        error @ Json::Object(_) => Error::from_json(error),
        _ => Error::new(ErrorCode::InvalidAnswer, format!("The server answered with status {status}.")),
    };
    error.status = Some(status);
    error
}
