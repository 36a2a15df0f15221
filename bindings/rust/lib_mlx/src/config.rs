//! What a host may configure: the keys of `lib_mlx_load_model` and `lib_mlx_start_server`.
//!
//! The library checks the values and names what is wrong; what is not set has the library's default.

use std::time::Duration;

use crate::json::Json;

/// How weights are kept on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuWeights {
    /// What is fastest, within memory.
    Auto,
    /// As float32: 8 times the memory of 4-bit weights.
    Float32,
    /// Quantised weights as they are stored.
    Quantized,
}

/// How much is written to a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What the library does.
    Info,
    /// What may be wrong.
    Warning,
    /// What is wrong.
    Error,
}

/// Where the engine and its server run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// In the host's process.
    None,
    /// In a child process of the library's; if that dies, the model has failed with `engine_died`.
    Process,
}

/// What happens to requests while the model is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendedRequests {
    /// They wait until it is resumed.
    Wait,
    /// They are answered 503 `suspended`.
    Fail,
}

/// Which http(s) URLs of images a server fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageUrls {
    /// None.
    None,
    /// Those at public addresses.
    Public,
    /// Those of this machine and its network too, which lets clients make the server ask there.
    Any,
}

/// How long a further model stays in memory without a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepAlive {
    /// For so long.
    For(Duration),
    /// For ever.
    Forever,
}

macro_rules! into_json {
    ($($type:ident { $($name:ident = $text:literal),* })*) => {$(
        impl From<$type> for Json {
            fn from(value: $type) -> Self {
                match value {
                    $($type::$name => $text.into(),)*
                }
            }
        }
    )*};
}

into_json! {
    CpuWeights { Auto = "auto", Float32 = "float32", Quantized = "quantized" }
    LogLevel { Debug = "debug", Info = "info", Warning = "warning", Error = "error" }
    Isolation { None = "none", Process = "process" }
    SuspendedRequests { Wait = "wait", Fail = "fail" }
    ImageUrls { None = "none", Public = "public", Any = "any" }
}

impl From<KeepAlive> for Json {
    fn from(value: KeepAlive) -> Self {
        match value {
            KeepAlive::For(duration) => duration.as_secs_f64().into(),
            KeepAlive::Forever => Json::Integer(-1),
        }
    }
}

macro_rules! configuration {
    ($(#[$doc:meta])* $name:ident {
        texts { $($(#[$text_doc:meta])* $text:ident,)* }
        values { $($(#[$key_doc:meta])* $key:ident: $type:ty,)* }
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        #[must_use]
        pub struct $name {
            json: Json,
        }

        impl $name {
            $(
                $(#[$text_doc])*
                pub fn $text(self, value: impl Into<String>) -> Self {
                    self.set(stringify!($text), value.into())
                }
            )*

            $(
                $(#[$key_doc])*
                pub fn $key(self, value: $type) -> Self {
                    self.set(stringify!($key), value)
                }
            )*

            /// Any key, for libraries that know more than this crate.
            pub fn set(mut self, key: &str, value: impl Into<Json>) -> Self {
                self.json.set(key, value);
                self
            }

            /// The JSON object that the library gets.
            pub fn to_json(&self) -> &Json {
                &self.json
            }
        }

        impl From<$name> for Json {
            fn from(config: $name) -> Self {
                config.json
            }
        }
    };
}

macro_rules! model_configuration {
    ($(#[$doc:meta])* $name:ident {
        texts { $($(#[$text_doc:meta])* $text:ident,)* }
        values { $($(#[$key_doc:meta])* $key:ident: $type:ty,)* }
    }) => {
        configuration! {
            $(#[$doc])*
            $name {
                texts {
                    /// The name clients use; the directory's name if not given.
                    model_id,
                    /// Branch, tag or commit of a Hugging Face repository.
                    revision,
                    /// A smaller model with the same tokens, whose guesses are checked several at once.
                    draft_model_path,
                    /// The directory of an adapter to begin with, or a name of `adapters`.
                    adapter_path,
                    /// A directory that keeps the prefix cache across restarts.
                    prefix_cache_path,
                    $($(#[$text_doc])* $text,)*
                }
                values {
                    /// Whether the chat template may open a reasoning block (true); a request can override it.
                    thinking_enabled: bool,
                    /// Upper bound in tokens of prompt plus completion; the model's own if not given.
                    context_length: u32,
                    /// How weights are kept on the CPU.
                    cpu_weights: CpuWeights,
                    /// Run the code that a checkpoint brings (false).
                    trust_remote_code: bool,
                    /// Keep the cache's keys and values in 4 or 8 bits: less memory, some loss, requests take turns.
                    kv_bits: u8,
                    /// The most bytes that weights and caches may take; what is free if not given.
                    memory_limit_bytes: u64,
                    /// The most bytes that are kept of past requests; 0 keeps nothing.
                    prefix_cache_bytes: u64,
                    /// Guess that what followed the last tokens before follows again (false).
                    prompt_lookup: bool,
                    /// The most tokens that are guessed at once (4).
                    draft_tokens: u32,
                    /// What requests get that leave it out.
                    generation: GenerationDefaults,
                    /// Load image and audio encoders at their first use (true).
                    lazy_encoders: bool,
                    /// Images are made larger than this before the model sees them.
                    min_pixels: u32,
                    /// Images are made smaller than this: fewer tokens, less detail.
                    max_pixels: u32,
                    /// The most bytes that are kept of encoded images; 0 keeps none.
                    image_cache_bytes: u64,
                    $($(#[$key_doc])* $key: $type,)*
                }
            }
        }

        impl $name {
            /// An adapter that can take others' places while the model serves: its name and directory.
            pub fn adapter(self, name: &str, directory: &str) -> Self {
                let mut adapters = self.json["adapters"].clone();
                adapters.set(name, directory);
                self.set("adapters", adapters)
            }

            /// A model directory, a `.gguf` file, or the name of a model in the store or the Hugging Face cache.
            pub fn new(model_path: impl Into<String>) -> Self {
                Self { json: Json::object() }.set("model_path", model_path.into())
            }
        }
    };
}

configuration! {
    /// What a request gets that leaves it out; the checkpoint's own if not given.
    GenerationDefaults {
        texts {}
        values {
            /// The most tokens of an answer, reasoning included; up to the context's end if not given.
            max_tokens: u32,
            /// 0 is greedy.
            temperature: f64,
            /// Draw from the likeliest tokens that have this much of the probability together.
            top_p: f64,
            /// Draw from so many of the likeliest; 0 is off.
            top_k: u32,
            /// Draw from those at least this likely, relative to the likeliest.
            min_p: f64,
            /// Over prompt and output; 1 is off.
            repetition_penalty: f64,
        }
    }
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self { json: Json::object() }
    }
}

model_configuration! {
    /// What to load and how.
    ///
    /// ```
    /// use lib_mlx::LoadConfig;
    ///
    /// let config = LoadConfig::new("smollm2").model_id("chat").wait(false);
    /// assert_eq!(config.to_json().to_string(), r#"{"model_path":"smollm2","model_id":"chat","wait":false}"#);
    /// ```
    LoadConfig {
        texts {
            /// A file that the library writes its log to.
            log_file,
        }
        values {
            /// False: `Model::load` returns at once, and [`crate::Model::status`] tells the progress (true).
            wait: bool,
            /// How much is written to `log_file`.
            log_level: LogLevel,
            /// Where the engine and its server run.
            isolation: Isolation,
        }
    }
}

model_configuration! {
    /// A further model of a server, loaded when it is first asked for.
    ServedModel {
        texts {}
        values {
            /// Never unload it to make room or for idleness (false).
            pinned: bool,
            /// Unload it after so long without a request; the server's `keep_alive` if not given.
            keep_alive: KeepAlive,
        }
    }
}

configuration! {
    /// Where and how to serve a model, and others beside it.
    ///
    /// ```
    /// use lib_mlx::{ServedModel, ServerConfig};
    ///
    /// let config = ServerConfig::default().port(8080).models(vec![ServedModel::new("other").pinned(true)]);
    /// assert_eq!(config.to_json()["models"][0]["pinned"].as_bool(), Some(true));
    /// ```
    ServerConfig {
        texts {
            /// The address to bind ("127.0.0.1"); only loopback unless named otherwise.
            host,
            /// The name clients use; the model's own if not given.
            model_id,
            /// Path of a Unix socket to listen on instead, open to this user alone.
            uds,
            /// What clients must send; "auto" makes one up.
            api_key,
            /// A TOML file with tables `[[models]]` of the same keys.
            models_file,
        }
        values {
            /// 0, the default, picks a free port.
            port: u16,
            /// Requests in flight at once (64); one more is answered 429 `queue_full`.
            queue_limit: u32,
            /// Names that the Host header may have beside addresses, localhost and `host`; "*" is any.
            allowed_hosts: Vec<String>,
            /// Web pages that may call the server, such as `https://example.org`.
            allowed_origins: Vec<String>,
            /// Which http(s) URLs of images are fetched.
            image_urls: ImageUrls,
            /// Folders from which requests may name images, by path or file URL.
            allowed_image_paths: Vec<String>,
            /// A larger request body is answered 413 (32 MiB).
            body_limit_bytes: u64,
            /// Further models, loaded at their first use.
            models: Vec<ServedModel>,
            /// Serve every model of the store and the Hugging Face cache (false).
            model_store: bool,
            /// Unload a further model after so long without a request; never if not given.
            keep_alive: KeepAlive,
            /// The most bytes that all models may take; those used least recently go first.
            memory_limit_bytes: u64,
            /// What happens to requests while the model is suspended.
            suspended_requests: SuspendedRequests,
        }
    }
}

impl ServerConfig {
    /// Bounds that a request names in `profile`: the most tokens of an answer, and the most pixels of an image.
    pub fn profile(self, name: &str, max_tokens: Option<u32>, max_pixels: Option<u32>) -> Self {
        let mut profiles = self.json["profiles"].clone();
        let mut bounds = Json::object();
        for (key, bound) in [("max_tokens", max_tokens), ("max_pixels", max_pixels)] {
            if let Some(bound) = bound {
                bounds.set(key, bound);
            }
        }
        profiles.set(name, bounds);
        self.set("profiles", profiles)
    }
}

/// The library's defaults: a free port of the loopback.
impl Default for ServerConfig {
    fn default() -> Self {
        Self { json: Json::object() }
    }
}
