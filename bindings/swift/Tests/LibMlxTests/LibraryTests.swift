import Foundation
import LibMlx
import Testing

/// Everything that runs the library itself, one test at a time: a shutdown ends the models of all.
///
/// The crafted checkpoint's script is chosen by the first word of the last user message.
@Suite(.serialized, .enabled(if: Fixture.path != nil, "LIB_MLX_TEST_MODEL names no crafted checkpoint"))
struct LibraryTests {}

enum Fixture {
    static let path = ProcessInfo.processInfo.environment["LIB_MLX_TEST_MODEL"]

    static var config: LoadConfig {
        var config = LoadConfig(modelPath: path ?? "")
        config.modelID = "crafted"
        return config
    }

    /// Runs `body` with a loaded model and unloads it.
    static func withModel<Result: Sendable>(
        _ body: (Model) async throws -> Result
    ) async throws -> Result {
        let model = try await Model.load(config)
        do {
            let result = try await body(model)
            _ = try? await model.unload()
            return result
        } catch {
            _ = try? await model.unload()
            throw error
        }
    }

    /// Runs `body` with a client of a loaded model's server.
    static func withClient<Result: Sendable>(
        _ server: ServerConfig = ServerConfig(), _ body: (LibMlxClient, Model) async throws -> Result
    ) async throws -> Result {
        try await withModel { model in
            try await body(#require(LibMlxClient(try await model.startServer(server))), model)
        }
    }

    static func ask(_ script: String) -> ChatRequest {
        ChatRequest(model: "crafted", messages: [.user(script)])
    }
}

/// Waits until a condition holds, ten seconds at most.
func eventually(_ condition: () async throws -> Bool) async throws {
    let deadline = ContinuousClock.now + .seconds(10)
    while try await !condition() {
        try #require(ContinuousClock.now < deadline)
        try await Task.sleep(for: .milliseconds(10))
    }
}

/// The library's error that `body` throws.
func failure(of body: () async throws -> some Any) async -> LibMlxError? {
    await #expect(throws: LibMlxError.self) { _ = try await body() }
}

/// The server's error that `body` throws.
func refusal(of body: () async throws -> some Any) async -> APIError? {
    await #expect(throws: APIError.self) { _ = try await body() }
}
