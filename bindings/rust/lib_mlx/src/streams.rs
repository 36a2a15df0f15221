//! Streams of OpenAI's routes: what their events mean.

use crate::error::{Error, Result};
use crate::json::Json;
use crate::sse::{Canceller, Events};

/// How many tokens a request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: i64,
    /// Of the answer, reasoning included.
    pub completion_tokens: i64,
}

impl Usage {
    fn from_json(json: &Json) -> Option<Self> {
        let count = |names: [&str; 2]| names.iter().find_map(|name| json[*name].as_i64());
        Some(Usage {
            prompt_tokens: count(["prompt_tokens", "input_tokens"])?,
            completion_tokens: count(["completion_tokens", "output_tokens"])?,
        })
    }
}

/// A piece of a chat completion. Most have text alone.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ChatChunk {
    /// The next piece of the first answer's text; may be empty.
    pub text: String,
    /// The next piece of its reasoning; may be empty.
    pub reasoning: String,
    /// Why the answer ended, with its last piece: "stop", "length", "tool_calls".
    pub finish_reason: Option<String>,
    /// With the last chunk of all.
    pub usage: Option<Usage>,
    /// The chunk as it came: tool calls, further answers, log-probabilities.
    pub json: Json,
}

impl ChatChunk {
    fn from_json(json: Json) -> Self {
        let choice = &json["choices"][0];
        ChatChunk {
            text: choice["delta"]["content"].to_text(),
            reasoning: choice["delta"]["reasoning_content"].to_text(),
            finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
            usage: Usage::from_json(&json["usage"]),
            json,
        }
    }
}

/// An event of a response.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ResponseEvent {
    /// Its type, such as `response.output_text.delta`.
    pub kind: String,
    /// The event as it came.
    pub json: Json,
}

impl ResponseEvent {
    /// The next piece of the answer's text, if this is one.
    pub fn text(&self) -> Option<&str> {
        (self.kind == "response.output_text.delta").then(|| self.json["delta"].as_str())?
    }

    /// The whole response, if this is an event that carries it.
    pub fn response(&self) -> Option<&Json> {
        self.json.get("response")
    }

    /// How many tokens it took, if this is its end.
    pub fn usage(&self) -> Option<Usage> {
        Usage::from_json(&self.response()?["usage"])
    }
}

/// The JSON of an event, or the error that it tells of: `{"error": ...}` in chat, `{"type": "error", ...}` and
/// `response.failed` in responses.
fn read_event(data: &str) -> Result<Json> {
    let json = Json::parse(data).ok_or_else(|| Error::invalid_answer("An event"))?;
    let failed = [&json["error"], &json["response"]["error"]].into_iter().find(|error| !error.is_null());
    match failed {
        Some(error) => Err(Error::from_json(error)),
        None if json["type"].as_str() == Some("error") => Err(Error::from_json(&json)),
        None => Ok(json),
    }
}

macro_rules! stream {
    ($(#[$doc:meta])* $name:ident of $item:ident by $read:expr) => {
        $(#[$doc])*
        /// Each `next` blocks until there is one; an error is the last item. **Dropping it closes the connection, which
        /// cancels the request.**
        #[derive(Debug)]
        pub struct $name {
            events: Option<Events>,
        }

        impl $name {
            pub(crate) fn new(events: Events) -> Self {
                $name { events: Some(events) }
            }

            /// Something that another thread can cancel the request with; `None` after an error.
            pub fn canceller(&self) -> Option<Result<Canceller>> {
                self.events.as_ref().map(Events::canceller)
            }
        }

        impl Iterator for $name {
            type Item = Result<$item>;

            fn next(&mut self) -> Option<Self::Item> {
                let item = self.events.as_mut()?.next()?.and_then(|event| read_event(&event.data)).map($read);
                if item.is_err() {
                    self.events = None;
                }
                Some(item)
            }
        }
    };
}

stream! {
    /// The pieces of a chat completion as they come.
    ChatStream of ChatChunk by ChatChunk::from_json
}

stream! {
    /// The events of a response as they come.
    ResponseStream of ResponseEvent by |json| ResponseEvent { kind: json["type"].to_text(), json }
}
