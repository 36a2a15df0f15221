import Foundation
import LibMlx
import Testing

extension LibraryTests {
    @Suite struct ClientTests {
        @Test("A stream's pieces make up the answer; the first has the role, the last the reason it ended.")
        func chatStream() async throws {
            try await Fixture.withClient { client, _ in
                var request = Fixture.ask("hello")
                request.temperature = 0
                request.extra = ["stream_options": ["include_usage": true]]
                var chunks: [ChatChunk] = []
                for try await chunk in try client.chatCompletionStream(request) { chunks.append(chunk) }
                #expect(chunks.map(\.text).joined() == "Hello, I am a crafted model.")
                #expect(chunks.first?.choices.first?.delta.role == "assistant")
                #expect(chunks.compactMap { $0.choices.first?.finishReason } == ["stop"])
                #expect(chunks.last?.usage?.outputTokens == 9)
            }
        }

        @Test("Characters that the model writes in several tokens arrive whole.")
        func unicode() async throws {
            try await Fixture.withClient { client, _ in
                var text = ""
                for try await chunk in try client.chatCompletionStream(Fixture.ask("unicode")) { text += chunk.text }
                #expect(text == "café 日本語 👩\u{200D}💻 ok")
            }
        }

        @Test("Pieces of a longer answer arrive one by one, while the model still writes.")
        func piecesArriveOneByOne() async throws {
            try await Fixture.withClient { client, _ in
                let clock = ContinuousClock()
                var arrivals: [ContinuousClock.Instant] = []
                for try await chunk in try client.chatCompletionStream(Fixture.ask("long")) where !chunk.text.isEmpty {
                    arrivals.append(clock.now)
                }
                #expect(arrivals.count == 200)
                #expect(arrivals[199] - arrivals[0] > .milliseconds(20))
                #expect(Set(arrivals.map { ($0 - arrivals[0]) / .milliseconds(2) }.map(Int.init)).count >= 10)
            }
        }

        @Test("A whole answer, its reasoning and its tool calls are typed.")
        func chatCompletion() async throws {
            try await Fixture.withClient { client, _ in
                let thought = try await client.chatCompletion(Fixture.ask("think")).choices.first
                #expect(thought?.message.content?.text?.contains("The answer is 42") == true)
                #expect(thought?.message.reasoning?.contains("Let me think") == true)
                var request = Fixture.ask("tool")
                request.tools = [["type": "function", "function": ["name": "get_weather", "parameters": [:]]]]
                let choice = try #require(try await client.chatCompletion(request).choices.first)
                let call = try #require(choice.message.toolCalls?.first)
                #expect(choice.finishReason == "tool_calls")
                #expect(call.function == .init(name: "get_weather", arguments: "{\"city\": \"Paris\"}"))
                request.messages += [choice.message, .tool("sunny", answering: call)]
                let after = try await client.chatCompletion(request)
                #expect(after.choices.first?.message.content?.text == "It is sunny in Paris!!")
            }
        }

        @Test("A response's stream is typed by event and ends with the whole response.")
        func responseStream() async throws {
            try await Fixture.withClient { client, _ in
                var text = ""
                var last: ResponseEvent?
                var others: Set<String> = []
                for try await event in try client.responseStream(ResponseRequest(model: "crafted", input: "hello")) {
                    if case .outputTextDelta(let delta) = event { text += delta.delta }
                    if case .other(let type, _) = event { others.insert(type) }
                    last = event
                }
                guard case .completed(let response) = last else { throw try #require(nil as (any Error)?) }
                #expect(text == "Hello, I am a crafted model.")
                #expect(response.output[0]["content"]?[0]?["text"]?.string == text)
                #expect(response.usage?.outputTokens == 9)
                #expect(others.contains("response.content_part.done"))
            }
        }

        @Test("Models and health are told.")
        func listModels() async throws {
            try await Fixture.withClient { client, _ in
                let models = try await client.listModels()
                #expect(models.map(\.id) == ["crafted"])
                #expect(models.first?.contextLength == 131_072)
                let health = try await client.health()
                #expect(health.status == "ok")
                #expect(health.models == ["crafted"])
                #expect(health.inFlight == 0)
            }
        }

        @Test("What the server refuses is an error with status, code and field, in a stream too.")
        func refusals() async throws {
            try await Fixture.withClient { client, _ in
                let unknown = await refusal {
                    try await client.chatCompletion(ChatRequest(model: "x", messages: [.user("hello")]))
                }
                #expect(unknown?.status == 404)
                #expect(unknown?.code == .modelNotFound)
                var request = Fixture.ask("hello")
                request.extra = ["colour": "red"]
                let wrong = await refusal { for try await _ in try client.chatCompletionStream(request) {} }
                #expect(wrong?.status == 400)
                #expect(wrong?.code == .invalidArgument)
                #expect(wrong?.param == "colour")
            }
        }

        @Test("A server with a key refuses clients without it.")
        func apiKey() async throws {
            var config = ServerConfig()
            config.apiKey = "auto"
            try await Fixture.withClient(config) { client, model in
                #expect(try await client.listModels().count == 1)
                let stranger = LibMlxClient(baseURL: try #require(try model.status().server.baseURL))
                let refused = await refusal { try await stranger.listModels() }
                #expect(refused?.status == 401)
                #expect(refused?.code == .unauthorized)
            }
        }

        @Test("Leaving the loop of a stream ends the request.")
        func leftLoop() async throws {
            try await Fixture.withClient { client, _ in
                for try await chunk in try client.chatCompletionStream(Fixture.ask("loop")) where !chunk.text.isEmpty {
                    #expect(try await client.health().inFlight == 1)
                    break
                }
                try await eventually { try await client.health().inFlight == 0 }
            }
        }

        @Test("Cancelling the task that reads a stream, or waits for an answer, ends the request.")
        func cancelledTask() async throws {
            try await Fixture.withClient { client, _ in
                let reading = Task {
                    for try await _ in try client.chatCompletionStream(Fixture.ask("loop")) {}
                    try Task.checkCancellation()
                }
                let waiting = Task { _ = try await client.chatCompletion(Fixture.ask("loop")) }
                try await eventually { try await client.health().inFlight == 2 }
                for task in [reading, waiting] {
                    task.cancel()
                    await #expect(throws: CancellationError.self) { try await task.value }
                }
                try await eventually { try await client.health().inFlight == 0 }
            }
        }

        @Test("Many streams at once each get their own answer, and leave nothing behind.")
        func manyStreams() async throws {
            try await Fixture.withClient { client, _ in
                try await withThrowingTaskGroup(of: String.self) { group in
                    for _ in 0..<24 {
                        group.addTask {
                            var text = ""
                            for try await chunk in try client.chatCompletionStream(Fixture.ask("hello")) {
                                text += chunk.text
                            }
                            return text
                        }
                    }
                    for try await text in group { #expect(text == "Hello, I am a crafted model.") }
                }
                #expect(try await client.health().inFlight == 0)
            }
        }

        #if os(Linux)
        @Test("A hundred requests leave neither descriptors nor threads behind.")
        func leavesNothing() async throws {
            func count(_ folder: String) throws -> Int {
                try FileManager.default.contentsOfDirectory(atPath: "/proc/self/\(folder)").count
            }
            try await Fixture.withClient { client, _ in
                _ = try await client.health()
                let (descriptors, threads) = (try count("fd"), try count("task"))
                for _ in 0..<100 { _ = try await client.health() }
                try await eventually { try count("fd") <= descriptors + 8 }
                try await eventually { try count("task") <= threads + 8 }
            }
        }
        #endif

        @Test("A stream waits while its model is suspended, and goes on when it is resumed.")
        func suspended() async throws {
            try await Fixture.withClient { client, model in
                try await model.suspend()
                #expect(try model.status().model.state == .suspended)
                async let answer = client.chatCompletion(Fixture.ask("hello"))
                try await eventually { try await client.health().inFlight == 1 }
                try await Task.sleep(for: .milliseconds(200))
                #expect(try await client.health().inFlight == 1)
                try await model.resume()
                #expect(try await answer.choices.first?.message.content?.text == "Hello, I am a crafted model.")
            }
        }

        @Test(
            "A server that is stopped, and a model that is unloaded, end their streams with an error.",
            arguments: [true, false])
        func endedFromWithin(byUnload: Bool) async throws {
            let model = try await Model.load(Fixture.config)
            let client = try #require(LibMlxClient(try await model.startServer()))
            let ended = await refusal {
                for try await chunk in try client.chatCompletionStream(Fixture.ask("loop")) where !chunk.text.isEmpty {
                    Task { if byUnload { try await model.unload() } else { try await model.stopServer() } }
                }
            }
            #expect(ended?.code == .shuttingDown)
            try await eventually { (try? model.status().server.state) ?? .stopped == .stopped }
            await #expect(throws: URLError.self) { try await client.health() }
            _ = try? await model.unload()
        }
    }
}
