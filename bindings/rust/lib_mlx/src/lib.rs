//! A local language model inside your own app: load it, serve it on the loopback, talk to it.
//!
//! This is a thin, safe layer over the C library `liblib_mlx`, whose header `lib_mlx.h` is the authority for keys, codes
//! and blocking, and a small client for the server that the library runs in this process. It uses nothing but the
//! standard library.
//!
//! ```no_run
//! use lib_mlx::{ChatRequest, LoadConfig, Model, ServerConfig};
//!
//! fn main() -> lib_mlx::Result<()> {
//!     let model = Model::load(&LoadConfig::new("smollm2").model_id("chat"))?;
//!     let client = model.start_server(&ServerConfig::default())?.client();
//!     for chunk in client.chat(&ChatRequest::new("chat").user("Say hello.").max_tokens(16))? {
//!         print!("{}", chunk?.text);
//!     }
//!     println!("{:?}", model.unload()?);
//!     Ok(())
//! }
//! ```
//!
//! **Blocking.** Calls block the calling thread as their documentation says: keep loads, server starts and stops and
//! unloads (also by drop) off a thread that draws or runs futures. [`Model::status`] never blocks.
//!
//! **Threads.** Everything may be used from any thread at once.
//!
//! **Later libraries.** Keys that this crate does not know are ignored, states and codes are kept as `Other`.

#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

mod client;
mod config;
mod error;
mod http;
pub mod json;
mod model;
mod requests;
mod sse;
mod status;
mod streams;

pub use client::{Client, Health};
pub use config::{
    CpuWeights, GenerationDefaults, ImageUrls, Isolation, KeepAlive, LoadConfig, LogLevel, ServedModel, ServerConfig,
    SuspendedRequests,
};
pub use error::{Error, ErrorCode, Result};
pub use model::{shutdown, version, Model, Server};
pub use requests::{ChatRequest, ResponseRequest};
pub use sse::{Canceller, Event, Events};
pub use status::{Memory, ModelState, ModelStatus, ServerState, ServerStatus, Status, Version};
pub use streams::{ChatChunk, ChatStream, ResponseEvent, ResponseStream, Usage};

/// The ABI that this crate is made for; [`Version::abi_version`] is that of the library found at run time.
pub const ABI_VERSION: i64 = lib_mlx_sys::LIB_MLX_ABI_VERSION as i64;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
