/* lib_mlx: local language and vision models inside a native app.
 *
 * One C library, JSON in and JSON out. A host loads a model, starts an OpenAI-compatible HTTP server in its
 * own process, talks to that server over a loopback socket, and stops:
 *
 *     char *answer = lib_mlx_load_model("{\"model_path\": \"/models/SmolLM2-135M-Instruct\"}");
 *     // {"ok": true, "handle": 1, "status": "ready", "model_id": "SmolLM2-135M-Instruct"}
 *     lib_mlx_free(answer);
 *     answer = lib_mlx_start_server(1, NULL);
 *     // {"ok": true, "handle": 1, "server": {"base_url": "http://127.0.0.1:49152", ...}}
 *     lib_mlx_free(answer);
 *     ...
 *     lib_mlx_free(lib_mlx_unload_model(1));
 *
 * This header is the authority for names, ownership, threads, blocking, keys and codes. It needs nothing but
 * <stdint.h>, holds no structs, callbacks or inline code, and compiles as C99, C11 and C++.
 *
 * Strings.   Arguments are UTF-8, read during the call only, and stay the caller's. Answers are
 *            NUL-terminated ASCII (other characters are written as \uXXXX), belong to the caller, and are
 *            released with lib_mlx_free(). NULL is returned only when memory has run out.
 * Answers.   Success: {"ok": true, ...}.
 *            Failure: {"ok": false, "error": {"code": "...", "message": "...", "hint": "..."}}.
 *            `code` is stable and meant for programs; `message` says what went wrong, `hint` what to do
 *            about it (it may be empty). New keys may appear in any answer: ignore the ones you do not know.
 * Threads.   Every function may be called from any thread, at any time, concurrently; also from one with a
 *            small stack. A call that blocks does so on the calling thread only: keep it off a UI thread.
 *            Do not call from a signal handler or from a destructor that runs inside exit().
 * Process.   The library never writes to stdout or stderr (set LIB_MLX_DEBUG=1 to see Python's messages on
 *            stderr), never ends the process, and leaves the working directory, locale, environment,
 *            resource limits and signal handlers as they are. It reads none of PATH or PYTHON*. The host may
 *            simply exit: generation is cancelled, the exit code is the host's, the delay at most 3 seconds.
 *            After fork() the child gets the error `forked`; spawn or exec instead. dlclose() is harmless:
 *            the library stays in memory.
 * Python.    liblib_mlx does not link libpython. At the first call that needs it, it takes the interpreter
 *            the process already runs, else starts the one in LIB_MLX_HOME (a venv or a Python prefix), else
 *            one found in or beside a directory above the library (the directory itself, `.venv`, `python`,
 *            `Resources/python`), else the one the library was built with.
 */
#ifndef LIB_MLX_H
#define LIB_MLX_H

#include <stdint.h>

/* The version of this header; lib_mlx_version() has that of the library found at run time. Functions are
 * only added, never reordered or re-typed, while LIB_MLX_ABI_VERSION stays the same. */
#define LIB_MLX_VERSION "0.1.0"
#define LIB_MLX_ABI_VERSION 1

#if defined(__GNUC__)
#define LIB_MLX_API __attribute__((visibility("default")))
#else
#define LIB_MLX_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Loads a model and returns a handle for it.
 *
 *     model_path        string, required: a model directory, a .gguf file, or the name of a model in the
 *                       store or the Hugging Face cache
 *     model_id          string: the name clients use; the directory's name if not given
 *     revision          string: branch, tag or commit of a Hugging Face repository
 *     thinking_enabled  bool (true): whether the chat template may open a reasoning block
 *     lazy_encoders     bool (true): load image and audio encoders at their first use
 *     min_pixels        integer: images are made larger than this before the model sees them
 *     max_pixels        integer: images are made smaller than this: fewer tokens, less detail
 *     image_cache_bytes  integer: the most that is kept of encoded images; 0 keeps none. By default 256 MiB or a
 *                       fiftieth of the machine's memory, whichever is less
 *     context_length    integer: upper bound in tokens of prompt plus completion; the model's own if not given
 *     cpu_weights       "auto" | "float32" | "quantized": on the CPU, dequantise weights to float32 (8 times
 *                       the memory of 4-bit weights) or keep quantised ones; "auto", the default and the
 *                       fastest, dequantises only what the library cannot multiply with as it is stored
 *                       (other than 2, 4 and 8 bits), if that takes less than half of the free memory
 *     trust_remote_code bool (false): run the code that a checkpoint brings; without it such a checkpoint is refused
 *     kv_bits           4 | 8: keep keys and values of the cache in so many bits: less memory, some loss, and
 *                       requests are decoded in turns instead of together
 *     memory_limit_bytes  integer: the most that weights and caches may take; what is free if not given
 *     prefix_cache_bytes  integer: the most that is kept of past requests; 0 keeps nothing. By default 2 GiB or a
 *                       tenth of the machine's memory, whichever is less
 *     prefix_cache_path   string: a directory that keeps it across restarts
 *     prompt_lookup     bool (false): guess that what followed the last tokens before follows again, and check several
 *                       at once: the same answers, faster where they repeat the prompt; requests decode in turns
 *     draft_model_path  string: a smaller model with the same tokens, whose guesses are checked likewise
 *     draft_tokens      integer (4): the most tokens that are guessed at once, 64 at most
 *     adapter_path      string: the directory of an adapter (LoRA, DoRA) to begin with, or a name of `adapters`
 *     adapters          object: name -> directory of adapters that can take each other's place while the model serves:
 *                       POST /v1/models/{id}/adapter {"name": "..."}, null for none
 *     generation        object: "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", which a
 *                       request gets that leaves them out; the checkpoint's own if not given
 *     wait              bool (true): false returns at once; poll lib_mlx_server_status() for progress
 *     isolation         "none" | "process": run engine and server in a child process of this one, which a crash of
 *                       theirs, or of a GPU driver, does not end: the model is "failed" then (`engine_died`), its
 *                       server's address answers so, and a new load works. The child never outlives this process
 *     log_file          string: append what the library does to this file, until the unload; what is asked and
 *                       answered is not in it
 *     log_level         "debug" | "info" | "warning" | "error" ("info"): what the file is told; "debug" has a line
 *                       per request
 *
 * Keys may also be written in camelCase. An unknown key is an error that names it.
 * Answer: {"ok": true, "handle": 1, "status": "ready" | "loading" | "failed", "model_id": "..."}; handles are
 * positive and never used twice. Only without waiting can it be "failed": the handle's status then says why.
 * Errors: invalid_json, invalid_argument, model_not_found, unsupported_model, unsupported_feature,
 *         corrupt_model, insufficient_memory, disk_full, load_cancelled, and those of Python below.
 * Blocks: until the model is ready, or not on the model at all with "wait": false. */
LIB_MLX_API char *lib_mlx_load_model(const char *config_json);

/* Starts the HTTP server of a loaded model. A running server is left as it is and described again.
 *
 *     host         string ("127.0.0.1"): the address to bind; only loopback unless named otherwise
 *     port         integer (0): 0 picks a free port
 *     model_id     string: the name clients use; the model's own if not given
 *     uds          string: path of a Unix socket to listen on instead, open to this user alone
 *     suspended_requests  "wait" | "fail": while the model is suspended requests wait, also those under way, or end
 *                  with the error `suspended`
 *     queue_limit  integer (64): requests in flight at once; one more is answered 429 `queue_full`
 *     api_key      string: what clients must send as `Authorization: Bearer ...` or `x-api-key`; "auto" makes one up
 *     allowed_hosts    [string]: names the Host header may have beside addresses, localhost and `host`; "*" is any
 *     allowed_origins  [string]: web pages that may call the server, such as "https://example.org"; none if not given
 *     image_urls       "none" | "public" | "any": which http(s) URLs of images are fetched: none, those at public
 *                      addresses, or those of this machine and its network too
 *     allowed_image_paths  [string]: folders from which requests may name images, by path or file URL; none if not given
 *     body_limit_bytes integer (33554432): a larger request body is answered 413
 *     models       [object]: further models, loaded at their first use: `model_path`, `model_id`, `revision`, `pinned`,
 *                  `keep_alive`, and lib_mlx_load_model()'s keys of how to run one
 *     models_file  string: a TOML file with tables [[models]] of the same keys
 *     model_store  bool (false): serve every model of the store and the Hugging Face cache
 *     keep_alive   number of seconds or string such as "5m": unload a further model after so long without a request;
 *                  never if negative or not given
 *     memory_limit_bytes  integer: the most that all models may take; those used least recently go first
 *     profiles     object: name -> {"max_tokens", "max_pixels"}, bounds that a request's `profile` names; beside the
 *                  built-in "fast", "balanced" and "quality", or in their place
 *
 * `config_json` may be NULL, which means {}. camelCase as above.
 * Answer: {"ok": true, "handle": 1, "server": {"host", "port", "base_url", "model_id", "status": "running", "uds",
 *          "api_key"}}; the key is told here alone, and not again of a server that runs already.
 * Errors: invalid_json, invalid_argument, invalid_handle, model_loading, address_in_use, server_start_failed,
 *         and those of the load, if it failed.
 * Blocks: until the server accepts connections. */
LIB_MLX_API char *lib_mlx_start_server(int64_t handle, const char *config_json);

/* Ends running streams with their terminal event, then closes the server. Without a running server it does
 * nothing, successfully.
 *
 * Answer: {"ok": true, "handle": 1, "status": "stopped"}
 * Errors: invalid_handle.
 * Blocks: at most about 5 seconds. */
LIB_MLX_API char *lib_mlx_stop_server(int64_t handle);

/* Reports a model and its server, also while the model loads.
 *
 * Answer: {"ok": true, "handle": 1,
 *          "model": {"status", "model_id", "model_path", "progress", "stage", "error",
 *                    "context_length", "device", "weights", "blas", "encoders"},
 *          "server": {"status", "host", "port", "base_url", "model_id", "uds", "api_key": null}}
 *     model.status   "loading" | "ready" | "suspended" | "stalled" | "unloading" | "failed"
 *     model.progress 0 to 1, meaningful while loading; model.stage says what is being done
 *     model.error    null, or the error object of a failed load, or of an engine's process that died
 *     model.device   "cpu" | "gpu"; this and the rest are null until the model is loaded
 *     model.weights  "float32" | "float16" | "bfloat16" | "quantized": how they are kept in memory
 *     model.blas     the library that is used on the CPU in place of MLX's own slow one; null: MLX as shipped
 *     model.encoders "waiting" | "loaded": whether those of images are in memory; null: it has none
 *     server.status  "stopped" | "starting" | "running" | "stopping"
 * Errors: invalid_handle (never loaded, or unloaded).
 * Blocks: never, not on Python's lock either; it may be polled from a UI thread. */
LIB_MLX_API char *lib_mlx_server_status(int64_t handle);

/* Stops the server, cancels a load in progress, frees the model's memory. The handle is then invalid.
 *
 * Answer: {"ok": true, "handle": 1, "status": "unloaded",
 *          "memory": {"before_bytes": ..., "after_bytes": ...}}
 * Errors: invalid_handle.
 * Blocks: at most about 10 seconds. */
LIB_MLX_API char *lib_mlx_unload_model(int64_t handle);

/* Ends all GPU work of a model, and of the further ones of its server, until lib_mlx_resume(): for an app that goes
 * to the background or a machine about to sleep. Models stay in memory (a load on demand that is under way is given
 * up and begins again), the server goes on accepting requests, and requests, also those under way, wait, or fail if
 * `suspended_requests` says so. Suspending twice is fine.
 *
 * Answer: {"ok": true, "handle": 1, "status": "suspended"}
 * Errors: invalid_handle, model_loading, shutting_down, and those of the load, if it failed.
 * Blocks: until the step in progress has ended. */
LIB_MLX_API char *lib_mlx_suspend(int64_t handle);

/* Undoes lib_mlx_suspend().
 *
 * Answer: {"ok": true, "handle": 1, "status": "ready"}
 * Errors: invalid_handle, model_loading, shutting_down, and those of the load, if it failed.
 * Blocks: briefly. */
LIB_MLX_API char *lib_mlx_resume(int64_t handle);

/* Stops every server, cancels every load and unloads every model. The library stays usable: a new load works.
 * Calling it is optional, before exit() too. Python is neither started nor ended by it.
 *
 * Answer: {"ok": true}
 * Blocks: at most about 3 seconds. */
LIB_MLX_API char *lib_mlx_shutdown(void);

/* Describes the library; starts no Python.
 *
 * Answer: {"ok": true, "version": "0.1.0", "abi_version": 1,
 *          "python_version": "3.11" | null,   the Python that is in use or would be started
 *          "mlx_version": "0.32.4" | null}    the MLX installed beside it; null where unknown, as in a child
 *                                             made by fork()
 * Blocks: on the file system only. */
LIB_MLX_API char *lib_mlx_version(void);

/* Releases an answer. NULL is a no-op. Never blocks. */
LIB_MLX_API void lib_mlx_free(void *ptr);

/* Error codes.
 *
 *     invalid_json            the configuration is not a JSON object in UTF-8
 *     invalid_argument        a key is unknown, missing, or has a wrong type or value
 *     unsupported_feature     well-formed, but this model or version cannot honour it
 *     invalid_handle          no model is loaded under that handle
 *     model_not_found         no model of that name or path
 *     unsupported_model       the checkpoint's architecture or format is not supported
 *     corrupt_model           the checkpoint's files are damaged or incomplete
 *     insufficient_memory     the model does not fit into memory
 *     disk_full               there is no room to write what a load has to (a converted .gguf file)
 *     load_cancelled          the load was cancelled by lib_mlx_unload_model() or lib_mlx_shutdown()
 *     model_loading           the model is not ready yet
 *     engine_died             the process that ran the model (`isolation`) has ended
 *     address_in_use          the requested port is taken
 *     server_start_failed     the server could not start
 *     shutting_down           the process is ending
 *     python_not_found        no usable Python, or LIB_MLX_HOME holds none
 *     python_mismatch         a Python was found, but of a version this library was not built for
 *     python_init             Python or one of its packages failed to start
 *     forked                  called in a child made by fork()
 *     internal                a defect in lib_mlx
 *
 * A code once shipped is never renamed; new ones may be added. */

#ifdef __cplusplus
}
#endif

#endif
