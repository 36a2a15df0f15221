//! What goes wrong, with the stable codes of the library.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::json::Json;

/// The result of every call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call or a request failed.
///
/// `code` is for programs; `message` says what went wrong and `hint` what to do about it, to people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Error {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// What went wrong.
    pub message: String,
    /// What to do about it; may be empty, and is for errors that a server sends.
    pub hint: String,
    /// The HTTP status, if the server answered with one.
    pub status: Option<u16>,
    source: Option<Arc<io::Error>>,
}

impl Error {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), hint: String::new(), status: None, source: None }
    }

    /// The object `{"code", "message", "hint"}` of an answer, or the error of any dialect of the server.
    pub(crate) fn from_json(json: &Json) -> Self {
        let code = if json["code"].is_null() { &json["type"] } else { &json["code"] };
        let mut error = Error::new(ErrorCode::from(code.as_str().unwrap_or_default()), json["message"].to_text());
        error.hint = json["hint"].to_text();
        error
    }

    pub(crate) fn out_of_memory() -> Self {
        Error::new(ErrorCode::OutOfMemory, "Memory has run out.")
    }

    pub(crate) fn invalid_answer(what: &str) -> Self {
        Error::new(ErrorCode::InvalidAnswer, format!("{what} has an unknown shape."))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code, self.message)?;
        if self.hint.is_empty() {
            return Ok(());
        }
        write!(out, " {}", self.hint)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// The connection to the server failed.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let mut made = Error::new(ErrorCode::Connection, format!("The connection to the server failed: {error}."));
        made.source = Some(Arc::new(error));
        made
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kind of an [`Error`]. Later libraries may know more: those are [`ErrorCode::Other`].
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code that this crate does not know.
            Other(String),
        }

        impl ErrorCode {
            /// The code as the library spells it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(ErrorCode::$name => $text,)*
                    ErrorCode::Other(code) => code,
                }
            }
        }

        impl From<&str> for ErrorCode {
            fn from(code: &str) -> Self {
                match code {
                    $($text => ErrorCode::$name,)*
                    _ => ErrorCode::Other(code.to_owned()),
                }
            }
        }
    };
}

codes! {
    /// The configuration is not a JSON object in UTF-8.
    InvalidJson = "invalid_json",
    /// A key is unknown, missing, or has a wrong type or value.
    InvalidArgument = "invalid_argument",
    /// Well-formed, but this model or version cannot honour it.
    UnsupportedFeature = "unsupported_feature",
    /// No model is loaded under that handle.
    InvalidHandle = "invalid_handle",
    /// No model of that name or path.
    ModelNotFound = "model_not_found",
    /// The checkpoint's architecture or format is not supported.
    UnsupportedModel = "unsupported_model",
    /// The checkpoint's files are damaged or incomplete.
    CorruptModel = "corrupt_model",
    /// The model or the request does not fit into memory.
    InsufficientMemory = "insufficient_memory",
    /// There is no room on the disk for what a load has to write.
    DiskFull = "disk_full",
    /// The load was cancelled by an unload or a shutdown.
    LoadCancelled = "load_cancelled",
    /// The model is not ready yet.
    ModelLoading = "model_loading",
    /// The model is suspended by its host.
    Suspended = "suspended",
    /// The process that ran the model has died.
    EngineDied = "engine_died",
    /// The requested port or socket is taken.
    AddressInUse = "address_in_use",
    /// The server could not start.
    ServerStartFailed = "server_start_failed",
    /// The server or the process is ending.
    ShuttingDown = "shutting_down",
    /// No usable Python, or `LIB_MLX_HOME` holds none.
    PythonNotFound = "python_not_found",
    /// A Python was found, but of a version that the library was not built for.
    PythonMismatch = "python_mismatch",
    /// Python or one of its packages failed to start.
    PythonInit = "python_init",
    /// Called in a child made by `fork()`.
    Forked = "forked",
    /// A defect in lib_mlx.
    Internal = "internal",
    /// The prompt does not fit the model's context.
    ContextLengthExceeded = "context_length_exceeded",
    /// The API key is missing or wrong.
    Unauthorized = "unauthorized",
    /// No such route or object.
    NotFound = "not_found",
    /// The server finishes what runs and takes nothing new.
    Draining = "draining",
    /// As many requests are in flight as the server allows.
    QueueFull = "queue_full",
    /// The request was cancelled before it finished.
    Cancelled = "cancelled",
    /// The library could not allocate its answer. A code of this crate.
    OutOfMemory = "out_of_memory",
    /// An answer or event that this crate cannot read. A code of this crate.
    InvalidAnswer = "invalid_answer",
    /// The server cannot be reached, or is gone in mid-answer. A code of this crate.
    Connection = "connection",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}
