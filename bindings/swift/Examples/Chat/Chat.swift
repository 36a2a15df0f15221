import Foundation
import LibMlx

/// Talks to a model in this process: `lib-mlx-chat MODEL_PATH [PROMPT]`.
@main
enum Chat {
    static func main() async {
        let arguments = CommandLine.arguments.dropFirst()
        guard let path = arguments.first, arguments.count <= 2 else {
            return fail("usage: lib-mlx-chat MODEL_PATH [PROMPT]")
        }
        do {
            let model = try await load(path)
            try await talk(to: model, arguments.dropFirst().first ?? "Why is the sky blue? Answer in two sentences.")
            try await model.stopServer()
            let memory = try await model.unload()
            print("memory: \(memory.beforeBytes) bytes before, \(memory.afterBytes) after")
        } catch let error as LibMlxError {
            fail("\(error.code.rawValue)\n\(error.message)\n\(error.hint)")
        } catch let error as APIError {
            fail("\(error.code.rawValue)\n\(error.message)")
        } catch {
            fail("\(error)")
        }
    }

    /// Shows how the load goes.
    static func load(_ path: String) async throws -> Model {
        let model = try await Model.startLoading(LoadConfig(modelPath: path))
        for await progress in model.progress() {
            print("loading: \(Int(progress.fraction * 100)) % \(progress.stage)")
        }
        try await model.waitUntilReady()
        return model
    }

    static func talk(to model: Model, _ prompt: String) async throws {
        let server = try await model.startServer()
        guard let client = LibMlxClient(server) else { return }
        print("server: \(server.baseURL?.absoluteString ?? "")")

        var request = ChatRequest(model: server.modelID, messages: [.user(prompt)])
        request.temperature = 0
        request.maxTokens = 256
        for try await chunk in try client.chatCompletionStream(request) {
            print(chunk.text, terminator: "")
            fflush(nil)
        }
        print()
        try await cancelInMidAnswer(client, server.modelID)
    }

    /// Leaves a long stream after a few pieces, which closes its connection, and waits until the model knows.
    static func cancelInMidAnswer(_ client: LibMlxClient, _ model: String?) async throws {
        let request = ChatRequest(model: model, messages: [.user("loop: count from one to a thousand.")])
        var pieces = 0
        for try await chunk in try client.chatCompletionStream(request) where !chunk.text.isEmpty {
            pieces += 1
            if pieces == 5 { break }
        }
        var health = try await client.health()
        while health.inFlight > 0 {
            try await Task.sleep(for: .milliseconds(20))
            health = try await client.health()
        }
        print("cancelled after \(pieces) pieces, in flight: \(health.inFlight)")
    }

    /// The library lets an app exit at any time, its model loaded or not.
    static func fail(_ message: String) {
        FileHandle.standardError.write(Data("\(message)\n".utf8))
        exit(1)
    }
}
