//! Models and their servers: the calls of `lib_mlx.h`.

use std::ffi::{c_char, CStr, CString};

use lib_mlx_sys as sys;

use crate::client::Client;
use crate::config::{LoadConfig, ServerConfig};
use crate::error::{Error, Result};
use crate::json::Json;
use crate::status::{Memory, ServerStatus, Status, Version};

/// Takes an answer over, releases it and reads it.
///
/// # Safety
///
/// `answer` must be null or an unreleased answer of the library.
unsafe fn take(answer: *mut c_char) -> Result<Json> {
    if answer.is_null() {
        return Err(Error::out_of_memory());
    }
    // SAFETY: an answer is NUL-terminated and stays ours until it is released, which happens once, after the copy.
    let text = unsafe {
        let text = CStr::from_ptr(answer).to_string_lossy().into_owned();
        sys::lib_mlx_free(answer.cast());
        text
    };
    read(&text)
}

/// A successful answer, or the error of a failed one.
fn read(text: &str) -> Result<Json> {
    let json = Json::parse(text).unwrap_or_default();
    match json["ok"].as_bool() {
        Some(true) => Ok(json),
        Some(false) if !json["error"].is_null() => Err(Error::from_json(&json["error"])),
        _ => Err(Error::invalid_answer("The library's answer")),
    }
}

/// The text for C. Written JSON escapes NUL, so that none is in it.
fn c_text(json: &Json) -> CString {
    CString::new(json.to_string()).unwrap_or_default()
}

/// A loaded, or loading, model.
///
/// It may be used from any thread at once. Dropping it unloads it, which blocks like [`Model::unload`]; do not keep one
/// in a `static`. Methods that block do so on the calling thread: in an asynchronous program, call them where blocking
/// is allowed (`spawn_blocking`).
#[derive(Debug)]
pub struct Model {
    handle: i64,
}

impl Model {
    /// Loads a model. Blocks until it is ready, or not on the model at all with [`LoadConfig::wait`] false: poll
    /// [`Model::status`] then.
    pub fn load(config: &LoadConfig) -> Result<Self> {
        let config = c_text(config.to_json());
        // SAFETY: `config` is NUL-terminated UTF-8 and outlives the call.
        let answer = unsafe { take(sys::lib_mlx_load_model(config.as_ptr())) }?;
        let handle = answer["handle"].as_i64().ok_or_else(|| Error::invalid_answer("The library's answer"))?;
        Ok(Model { handle })
    }

    /// What `lib_mlx.h` calls the handle.
    pub fn handle(&self) -> i64 {
        self.handle
    }

    /// The model and its server, also during the load. Never blocks.
    pub fn status(&self) -> Result<Status> {
        // SAFETY: any handle may be asked for.
        unsafe { take(sys::lib_mlx_server_status(self.handle)) }.map(|json| Status::from_json(&json))
    }

    /// Starts the HTTP server, or describes the one that runs. Blocks until it accepts connections.
    pub fn start_server(&self, config: &ServerConfig) -> Result<Server> {
        let config = c_text(config.to_json());
        // SAFETY: `config` is NUL-terminated UTF-8 and outlives the call.
        let answer = unsafe { take(sys::lib_mlx_start_server(self.handle, config.as_ptr())) }?;
        Ok(Server {
            status: ServerStatus::from_json(&answer["server"]),
            api_key: answer["server"]["api_key"].as_str().map(str::to_owned),
        })
    }

    /// Ends running streams with their terminal event and closes the server; does nothing without one. Blocks at most
    /// about 5 seconds.
    pub fn stop_server(&self) -> Result<()> {
        // SAFETY: as above.
        unsafe { take(sys::lib_mlx_stop_server(self.handle)) }.map(drop)
    }

    /// Ends all GPU work until [`Model::resume`]; the model stays in memory. Blocks until the step in progress has ended.
    pub fn suspend(&self) -> Result<()> {
        // SAFETY: as above.
        unsafe { take(sys::lib_mlx_suspend(self.handle)) }.map(drop)
    }

    /// Undoes [`Model::suspend`]. Blocks briefly.
    pub fn resume(&self) -> Result<()> {
        // SAFETY: as above.
        unsafe { take(sys::lib_mlx_resume(self.handle)) }.map(drop)
    }

    /// Stops the server, cancels a load in progress and frees the memory. Blocks at most about 10 seconds.
    pub fn unload(self) -> Result<Memory> {
        let handle = self.handle;
        std::mem::forget(self);
        // SAFETY: as above.
        unsafe { take(sys::lib_mlx_unload_model(handle)) }.map(|json| Memory::from_json(&json["memory"]))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: as above. An error means that the model is gone already, by a shutdown.
        let _ = unsafe { take(sys::lib_mlx_unload_model(self.handle)) };
    }
}

/// A running server, as it was when it started. It belongs to its model; dropping this stops nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Server {
    /// Where it listens.
    pub status: ServerStatus,
    /// The key that clients must send, in the answer to its start alone.
    pub api_key: Option<String>,
}

impl Server {
    /// Such as `http://127.0.0.1:49152`: for any OpenAI-compatible client.
    pub fn base_url(&self) -> &str {
        self.status.base_url.as_deref().unwrap_or_default()
    }

    /// A client for it.
    pub fn client(&self) -> Client {
        Client::of(self)
    }
}

/// Stops every server, cancels every load and unloads every model; a new load works. Blocks at most about 3 seconds.
pub fn shutdown() -> Result<()> {
    // SAFETY: callable at any time.
    unsafe { take(sys::lib_mlx_shutdown()) }.map(drop)
}

/// Describes the library; starts no Python. Blocks on the file system only.
pub fn version() -> Result<Version> {
    // SAFETY: callable at any time.
    unsafe { take(sys::lib_mlx_version()) }.map(|json| Version::from_json(&json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::status::{ModelState, ServerState};

    fn code(text: &str) -> ErrorCode {
        read(text).unwrap_err().code
    }

    #[test]
    fn null_is_out_of_memory() {
        // SAFETY: null is allowed.
        assert_eq!(unsafe { take(std::ptr::null_mut()) }.unwrap_err().code, ErrorCode::OutOfMemory);
    }

    #[test]
    fn failures_are_typed_errors() {
        let error =
            read(r#"{"ok": false, "error": {"code": "corrupt_model", "message": "m\u00e9", "hint": "h", "new": 1}}"#)
                .unwrap_err();
        assert_eq!((error.code, error.message.as_str(), error.hint.as_str()), (ErrorCode::CorruptModel, "mé", "h"));
        assert_eq!(code(r#"{"ok": false, "error": {"code": "brand_new"}}"#), ErrorCode::Other("brand_new".into()));
    }

    #[test]
    fn strange_answers_are_errors() {
        for text in ["", "nonsense", "[]", "{}", "null", r#"{"ok": 1}"#, r#"{"ok": false}"#, r#"{"ok": true"#] {
            assert_eq!(code(text), ErrorCode::InvalidAnswer, "{text}");
        }
    }

    #[test]
    fn unknown_states_and_keys_are_kept_or_ignored() {
        let json = read(
            r#"{"ok": true, "handle": 3, "model": {"status": "dreaming", "progress": "much", "error": null, "x": {}},
                "server": {"status": "running", "port": 8080, "uds": null}}"#,
        )
        .unwrap();
        let status = Status::from_json(&json);
        assert_eq!(status.model.state, ModelState::Other("dreaming".into()));
        assert_eq!((status.model.progress, status.model.context_length), (0.0, None));
        assert_eq!((status.server.state, status.server.port), (ServerState::Running, Some(8080)));
    }

    #[test]
    fn a_failed_model_tells_why() {
        let json = Json::parse(r#"{"model": {"status": "failed", "error": {"code": "engine_died", "message": "m"}}}"#);
        let status = Status::from_json(&json.unwrap());
        assert_eq!(status.model.state, ModelState::Failed);
        assert_eq!(status.model.error.unwrap().code, ErrorCode::EngineDied);
    }
}
