//! What the library tells about models and servers. Fields and states that are not known here are ignored or `Other`.

use crate::error::Error;
use crate::json::Json;

macro_rules! states {
    ($(#[$doc:meta])* $type:ident { $($(#[$state_doc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$state_doc])* $name,)*
            /// A state that this crate does not know.
            Other(String),
        }

        impl From<&str> for $type {
            fn from(state: &str) -> Self {
                match state {
                    $($text => $type::$name,)*
                    _ => $type::Other(state.to_owned()),
                }
            }
        }
    };
}

states! {
    /// Where a model is in its life.
    ModelState {
        /// Being loaded; `progress` and `stage` say how far.
        Loading = "loading",
        /// Answers requests.
        Ready = "ready",
        /// Does no GPU work until it is resumed.
        Suspended = "suspended",
        /// Has been busy with one step for a minute or more.
        Stalled = "stalled",
        /// Frees its memory.
        Unloading = "unloading",
        /// Could not be loaded, or its process died; `error` says why.
        Failed = "failed",
    }
}

states! {
    /// Where a server is in its life.
    ServerState {
        /// Not running.
        Stopped = "stopped",
        /// About to accept connections.
        Starting = "starting",
        /// Accepts connections.
        Running = "running",
        /// Ends its streams.
        Stopping = "stopping",
    }
}

/// A model as it is now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelStatus {
    /// Where it is in its life.
    pub state: ModelState,
    /// What clients call it.
    pub model_id: String,
    /// What was loaded.
    pub model_path: String,
    /// 0 to 1, meaningful while loading.
    pub progress: f64,
    /// What the load is doing; may be empty.
    pub stage: String,
    /// Why it failed.
    pub error: Option<Error>,
    /// The most tokens of prompt plus completion; `None` until it is loaded, as what follows.
    pub context_length: Option<i64>,
    /// "cpu" or "gpu".
    pub device: Option<String>,
    /// How weights are kept: "float32", "float16", "bfloat16" or "quantized".
    pub weights: Option<String>,
    /// What multiplies on the CPU in place of MLX's own; `None`: MLX as shipped.
    pub blas: Option<String>,
    /// Those of images: "waiting" for their first use, or "loaded"; `None`: it has none.
    pub encoders: Option<String>,
}

/// A server as it is now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Where it is in its life.
    pub state: ServerState,
    /// Such as `http://127.0.0.1:49152`, while it runs.
    pub base_url: Option<String>,
    /// The address that it is bound to.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// What clients call the model.
    pub model_id: Option<String>,
    /// The Unix socket that it listens on, if it does; host and port mean nothing then.
    pub uds: Option<String>,
}

/// A model and its server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The handle of `lib_mlx.h`.
    pub handle: i64,
    /// The model.
    pub model: ModelStatus,
    /// Its server.
    pub server: ServerStatus,
}

/// The process's resident memory in bytes, before and after an unload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Before.
    pub before_bytes: i64,
    /// After.
    pub after_bytes: i64,
}

/// The library that was found at run time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Version {
    /// Its version.
    pub version: String,
    /// [`crate::ABI_VERSION`], if it fits this crate.
    pub abi_version: i64,
    /// The Python that is in use or would be started.
    pub python_version: Option<String>,
    /// The MLX installed beside it.
    pub mlx_version: Option<String>,
}

fn text(json: &Json) -> Option<String> {
    json.as_str().map(str::to_owned)
}

impl ModelStatus {
    pub(crate) fn from_json(json: &Json) -> Self {
        ModelStatus {
            state: json["status"].as_str().unwrap_or_default().into(),
            model_id: json["model_id"].to_text(),
            model_path: json["model_path"].to_text(),
            progress: json["progress"].as_f64().unwrap_or_default(),
            stage: json["stage"].to_text(),
            error: matches!(json["error"], Json::Object(_)).then(|| Error::from_json(&json["error"])),
            context_length: json["context_length"].as_i64(),
            device: text(&json["device"]),
            weights: text(&json["weights"]),
            blas: text(&json["blas"]),
            encoders: text(&json["encoders"]),
        }
    }
}

impl ServerStatus {
    pub(crate) fn from_json(json: &Json) -> Self {
        ServerStatus {
            state: json["status"].as_str().unwrap_or_default().into(),
            base_url: text(&json["base_url"]),
            host: text(&json["host"]),
            port: json["port"].as_i64().and_then(|port| port.try_into().ok()),
            model_id: text(&json["model_id"]),
            uds: text(&json["uds"]),
        }
    }
}

impl Status {
    pub(crate) fn from_json(json: &Json) -> Self {
        Status {
            handle: json["handle"].as_i64().unwrap_or_default(),
            model: ModelStatus::from_json(&json["model"]),
            server: ServerStatus::from_json(&json["server"]),
        }
    }
}

impl Memory {
    pub(crate) fn from_json(json: &Json) -> Self {
        let bytes = |key: &str| json[key].as_i64().unwrap_or_default();
        Memory { before_bytes: bytes("before_bytes"), after_bytes: bytes("after_bytes") }
    }
}

impl Version {
    pub(crate) fn from_json(json: &Json) -> Self {
        Version {
            version: json["version"].to_text(),
            abi_version: json["abi_version"].as_i64().unwrap_or_default(),
            python_version: text(&json["python_version"]),
            mlx_version: text(&json["mlx_version"]),
        }
    }
}
