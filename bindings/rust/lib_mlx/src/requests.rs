//! Requests to OpenAI's routes. What has no method here goes through `set`; docs/http-api.md lists the fields.

use crate::json::Json;

/// A chat completion to be streamed.
///
/// ```
/// use lib_mlx::ChatRequest;
///
/// let request = ChatRequest::new("smollm2").system("Be brief.").user("Hello!").max_tokens(32).set("seed", 7);
/// assert_eq!(request.to_json()["messages"][1]["content"].as_str(), Some("Hello!"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ChatRequest {
    json: Json,
    messages: Vec<Json>,
}

impl ChatRequest {
    /// To the model that clients call so.
    pub fn new(model: &str) -> Self {
        ChatRequest { json: Json::object(), messages: Vec::new() }.set("model", model)
    }

    /// Appends a message: `role` is "system", "user", "assistant" or "tool".
    pub fn message(mut self, role: &str, content: &str) -> Self {
        let mut message = Json::object();
        message.set("role", role);
        message.set("content", content);
        self.messages.push(message);
        self
    }

    /// Appends what the user says.
    pub fn user(self, content: &str) -> Self {
        self.message("user", content)
    }

    /// Appends instructions.
    pub fn system(self, content: &str) -> Self {
        self.message("system", content)
    }

    /// Bound on the answer in tokens, reasoning included; the context's end if not given.
    pub fn max_tokens(self, count: u32) -> Self {
        self.set("max_tokens", count)
    }

    /// 0 is greedy; 2 is the most.
    pub fn temperature(self, value: f64) -> Self {
        self.set("temperature", value)
    }

    /// Any other field.
    pub fn set(mut self, field: &str, value: impl Into<Json>) -> Self {
        self.json.set(field, value);
        self
    }

    /// The request without its stream, for [`crate::Client::post`].
    pub fn to_json(&self) -> Json {
        let mut json = self.json.clone();
        json.set("messages", Json::Array(self.messages.clone()));
        json
    }

    pub(crate) fn to_streaming_json(&self) -> Json {
        let mut options = Json::object();
        options.set("include_usage", true);
        let mut json = self.to_json();
        json.set("stream_options", options);
        json.set("stream", true);
        json
    }
}

/// A response to be streamed.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ResponseRequest {
    json: Json,
}

impl ResponseRequest {
    /// To the model that clients call so; `input` is text, or an array of items.
    pub fn new(model: &str, input: impl Into<Json>) -> Self {
        ResponseRequest { json: Json::object() }.set("model", model).set("input", input)
    }

    /// Instructions before the input.
    pub fn instructions(self, text: &str) -> Self {
        self.set("instructions", text)
    }

    /// Bound on the answer in tokens, reasoning included; the context's end if not given.
    pub fn max_output_tokens(self, count: u32) -> Self {
        self.set("max_output_tokens", count)
    }

    /// 0 is greedy; 2 is the most.
    pub fn temperature(self, value: f64) -> Self {
        self.set("temperature", value)
    }

    /// Goes on from a stored response.
    pub fn previous_response_id(self, id: &str) -> Self {
        self.set("previous_response_id", id)
    }

    /// Any other field.
    pub fn set(mut self, field: &str, value: impl Into<Json>) -> Self {
        self.json.set(field, value);
        self
    }

    /// The request without its stream, for [`crate::Client::post`].
    pub fn to_json(&self) -> Json {
        self.json.clone()
    }

    pub(crate) fn to_streaming_json(&self) -> Json {
        self.clone().set("stream", true).json
    }
}
