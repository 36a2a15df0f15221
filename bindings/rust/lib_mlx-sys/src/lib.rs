//! The functions of `include/lib_mlx.h`, which is the authority for keys, answers, errors, threads and blocking.
//!
//! Arguments are NUL-terminated UTF-8 that stays the caller's. Answers are NUL-terminated ASCII JSON, released with
//! [`lib_mlx_free`], or null when memory has run out. Every function may be called from any thread at any time. The
//! crate `lib_mlx` is the safe side of this one.

#![no_std]

use core::ffi::{c_char, c_int, c_void};

/// The version of the header that these declarations follow; [`lib_mlx_version`] tells that of the library.
pub const LIB_MLX_VERSION: &str = "0.1.0";

/// Changes only when an existing function does.
pub const LIB_MLX_ABI_VERSION: c_int = 1;

extern "C" {
    /// Loads a model. Blocks until it is ready, or not on the model at all with `"wait": false`.
    pub fn lib_mlx_load_model(config_json: *const c_char) -> *mut c_char;

    /// Starts the HTTP server of a model; a null configuration means `{}`. Blocks until it accepts connections.
    pub fn lib_mlx_start_server(handle: i64, config_json: *const c_char) -> *mut c_char;

    /// Stops it. Blocks at most about 5 seconds.
    pub fn lib_mlx_stop_server(handle: i64) -> *mut c_char;

    /// Reports a model and its server. Never blocks.
    pub fn lib_mlx_server_status(handle: i64) -> *mut c_char;

    /// Stops the server, cancels a load in progress, frees the memory. Blocks at most about 10 seconds.
    pub fn lib_mlx_unload_model(handle: i64) -> *mut c_char;

    /// Ends all GPU work of a model until it is resumed. Blocks until the step in progress has ended.
    pub fn lib_mlx_suspend(handle: i64) -> *mut c_char;

    /// Undoes [`lib_mlx_suspend`]. Blocks briefly.
    pub fn lib_mlx_resume(handle: i64) -> *mut c_char;

    /// Stops every server and unloads every model; a new load works. Blocks at most about 3 seconds.
    pub fn lib_mlx_shutdown() -> *mut c_char;

    /// Describes the library; starts no Python. Blocks on the file system only.
    pub fn lib_mlx_version() -> *mut c_char;

    /// Releases an answer. Null is a no-op. Never blocks.
    pub fn lib_mlx_free(ptr: *mut c_void);
}
