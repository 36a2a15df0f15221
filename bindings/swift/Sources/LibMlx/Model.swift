internal import CLibMlx
import Foundation

/// A loaded model, or one that is being loaded.
///
/// An actor that stands for one of the library's handles; the model stays in memory until ``unload()`` or
/// ``LibMlxRuntime/shutdown()``. Every method may be called from any task and at any time, also while another one is
/// under way: the blocking ones wait for a thread of their own and hold up neither this actor, nor the caller's, nor
/// Swift's thread pool. Once the model is unloaded, all throw ``LibMlxError/Code/invalidHandle``.
public actor Model {
    /// The library's name for it: positive, never used twice in a process.
    public nonisolated let handle: Int64

    init(handle: Int64) {
        self.handle = handle
    }

    /// Loads a model and returns it when it is ready.
    ///
    /// Cancelling the task cancels the load, which then throws ``LibMlxError/Code/loadCancelled``. Nothing stays in
    /// memory after an error.
    public static func load(_ config: LoadConfig) async throws(LibMlxError) -> Model {
        let model = try await startLoading(config)
        do {
            try await model.waitUntilReady()
        } catch {
            _ = try? await model.unload()
            throw error
        }
        return model
    }

    /// Begins to load a model and returns it at once; see ``progress(every:)`` and ``waitUntilReady()``.
    ///
    /// The process's first load waits for Python to start, about a second. A failed load, too, holds its handle until
    /// ``unload()``.
    public static func startLoading(_ config: LoadConfig) async throws(LibMlxError) -> Model {
        let json = try Library.json(config, adding: ["wait": false])
        let loaded: Loaded = try await Library.call { lib_mlx_load_model(json) }
        return Model(handle: loaded.handle)
    }

    /// Reports how far the load is at every change, until it has ended in whichever way.
    public nonisolated func progress(every interval: Duration = .milliseconds(50)) -> AsyncStream<LoadProgress> {
        AsyncStream(bufferingPolicy: .bufferingNewest(1)) { continuation in
            let polling = Task {
                var last: LoadProgress?
                while let status = try? status().model, [.loading, .unloading].contains(status.state) {
                    let now = LoadProgress(fraction: status.progress, stage: status.stage)
                    if now != last { continuation.yield(now) }
                    last = now
                    guard (try? await Task.sleep(for: interval)) != nil else { break }
                }
                continuation.finish()
            }
            continuation.onTermination = { _ in polling.cancel() }
        }
    }

    /// Waits until the load has ended, and throws its error if it failed, ``LibMlxError/Code/invalidHandle`` if the model
    /// was unloaded meanwhile.
    ///
    /// Cancelling the task ends the wait with ``LibMlxError/Code/loadCancelled``; the load itself goes on.
    public nonisolated func waitUntilReady() async throws(LibMlxError) {
        for await _ in progress() {}
        if Task.isCancelled {
            throw LibMlxError(code: .loadCancelled, message: "The task that awaited the load was cancelled.")
        }
        if let error = try status().model.error { throw error }
    }

    /// The model and its server at this moment, also while it loads. Never blocks: it may be called on a UI thread.
    public nonisolated func status() throws(LibMlxError) -> Status {
        try Library.callNow { lib_mlx_server_status(handle) }
    }

    /// Starts the model's HTTP server and returns when it accepts connections.
    ///
    /// A running server is left as it is and described again, without its key.
    @discardableResult
    public func startServer(_ config: ServerConfig = ServerConfig()) async throws(LibMlxError) -> ServerStatus {
        let json = try Library.json(config)
        let started: Started = try await Library.call { [handle] in lib_mlx_start_server(handle, json) }
        return started.server
    }

    /// Ends running streams with their terminal event, then closes the server: about 5 seconds at most.
    ///
    /// Without a running server it does nothing.
    public func stopServer() async throws(LibMlxError) {
        let _: Done = try await Library.call { [handle] in lib_mlx_stop_server(handle) }
    }

    /// Ends all GPU work until ``resume()``: for an app that goes to the background, a machine about to sleep.
    ///
    /// Returns when the step in progress has ended. The model stays in memory; what requests do meanwhile says
    /// ``ServerConfig/suspendedRequests``. Suspending twice is fine.
    public func suspend() async throws(LibMlxError) {
        let _: Done = try await Library.call { [handle] in lib_mlx_suspend(handle) }
    }

    /// Undoes ``suspend()``.
    public func resume() async throws(LibMlxError) {
        let _: Done = try await Library.call { [handle] in lib_mlx_resume(handle) }
    }

    /// Stops the server, cancels a load in progress and frees the model's memory: about 10 seconds at most.
    @discardableResult
    public func unload() async throws(LibMlxError) -> MemoryReport {
        let unloaded: Unloaded = try await Library.call { [handle] in lib_mlx_unload_model(handle) }
        return unloaded.memory
    }
}

private struct Loaded: Decodable, Sendable {
    let handle: Int64
}

private struct Started: Decodable, Sendable {
    let server: ServerStatus
}

private struct Unloaded: Decodable, Sendable {
    let memory: MemoryReport
}
