import Foundation
import Testing

@testable import LibMlx

extension LibraryTests {
    @Suite struct ModelTests {
        @Test("The library tells its version and ABI without a model.")
        func version() async throws {
            let version = try await LibMlxRuntime.version()
            #expect(version.abiVersion == 1)
            #expect(version.pythonVersion?.hasPrefix("3.") == true)
        }

        @Test("A loaded model tells its name, length, device and weights; an unload tells what it gave back.")
        func lifecycle() async throws {
            let model = try await Model.load(Fixture.config)
            let status = try model.status()
            #expect(status.model.state == .ready)
            #expect(status.model.id == "crafted")
            #expect(status.model.path == Fixture.path)
            #expect(status.model.contextLength == 131_072)
            #expect(status.model.device != nil)
            #expect(status.model.error == nil)
            #expect(status.server.state == .stopped)
            #expect(try await model.unload().beforeBytes > 0)
            #expect(await failure { try model.status() }?.code == .invalidHandle)
        }

        @Test("A load reports how far it is, each state once, and then the model is ready.")
        func progress() async throws {
            let model = try await Model.startLoading(Fixture.config)
            var seen: [LoadProgress] = []
            for await progress in model.progress(every: .milliseconds(1)) { seen.append(progress) }
            try await model.waitUntilReady()
            #expect(zip(seen, seen.dropFirst()).allSatisfy { $0 != $1 && $0.fraction <= $1.fraction })
            #expect(seen.allSatisfy { (0...1).contains($0.fraction) })
            try await model.unload()
        }

        @Test("A model that does not exist is model_not_found, with a hint for people.")
        func modelNotFound() async throws {
            let error = await failure { try await Model.load(LoadConfig(modelPath: "/nowhere/at all \"é\"")) }
            #expect(error?.code == .modelNotFound)
            #expect(error?.message.contains("/nowhere/at all \"é\"") == true)
            #expect(error?.recoverySuggestion?.isEmpty == false)
        }

        @Test("A value out of range is refused by name before anything is loaded.")
        func invalidArgument() async throws {
            var config = Fixture.config
            config.kvBits = 5
            let error = await failure { try await Model.startLoading(config) }
            #expect(error?.code == .invalidArgument)
            #expect(error?.message.contains("kv_bits") == true)
        }

        @Test("A failed load keeps its handle, whose status says why, until it is unloaded.")
        func failedLoad() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: folder) }
            try Data("{".utf8).write(to: folder.appendingPathComponent("config.json"))
            let model = try await Model.startLoading(LoadConfig(modelPath: folder.path))
            let error = await failure { try await model.waitUntilReady() }
            #expect(try model.status().model.state == .failed)
            #expect(try model.status().model.error == error)
            #expect(await failure { try await model.startServer() } == error)
            try await model.unload()
        }

        @Test("After an unload every call is invalid_handle.")
        func invalidHandle() async throws {
            let model = try await Model.load(Fixture.config)
            try await model.unload()
            #expect(await failure { try await model.startServer() }?.code == .invalidHandle)
            #expect(await failure { try await model.stopServer() }?.code == .invalidHandle)
            #expect(await failure { try await model.suspend() }?.code == .invalidHandle)
            #expect(await failure { try await model.resume() }?.code == .invalidHandle)
            #expect(await failure { try await model.unload() }?.code == .invalidHandle)
            #expect(await failure { try await model.waitUntilReady() }?.code == .invalidHandle)
        }

        @Test("Cancelling the task of a load unloads the model.")
        func cancelledLoad() async throws {
            let before = try await Fixture.withModel { $0.handle }
            let load = Task { try await Model.load(Fixture.config) }
            load.cancel()
            #expect(await failure { try await load.value }?.code == .loadCancelled)
            #expect(await failure { try Model(handle: before + 1).status() }?.code == .invalidHandle)
        }

        @Test("A load that is unloaded meanwhile ends for those who wait for it.")
        func unloadedWhileLoading() async throws {
            let model = try await Model.startLoading(Fixture.config)
            let waiting = Task { try await model.waitUntilReady() }
            try await model.unload()
            if case .failure(let error) = await waiting.result {  // else the load was faster
                let code = (error as? LibMlxError)?.code
                #expect(code == .invalidHandle || code == .loadCancelled)
            }
        }

        @Test("A server is started once, described again without its key, and stopped any number of times.")
        func server() async throws {
            try await Fixture.withModel { model in
                var config = ServerConfig()
                config.apiKey = "auto"
                let first = try await model.startServer(config)
                let second = try await model.startServer()
                #expect(first.state == .running)
                #expect(first.apiKey?.isEmpty == false)
                #expect(first.baseURL == second.baseURL)
                #expect(second.apiKey == nil)
                try await model.stopServer()
                try await model.stopServer()
                #expect(try model.status().server.state == .stopped)
            }
        }

        @Test("A port that is taken is address_in_use.")
        func addressInUse() async throws {
            try await Fixture.withModel { first in
                var config = ServerConfig()
                config.port = try await first.startServer().port
                try await Fixture.withModel { second in
                    #expect(await failure { try await second.startServer(config) }?.code == .addressInUse)
                }
            }
        }

        @Test("Every key of a load's configuration is understood by the library.")
        func everyLoadKey() async throws {
            let cache = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: cache) }
            var config = Fixture.config
            config.revision = "main"
            config.lazyEncoders = true
            config.thinkingEnabled = false
            config.contextLength = 1024
            config.cpuWeights = .float32
            config.trustRemoteCode = false
            config.kvBits = 8
            config.memoryLimitBytes = 1 << 30
            config.prefixCacheBytes = 1 << 20
            config.prefixCachePath = cache.path
            let model = try await Model.load(config)
            #expect(try model.status().model.contextLength == 1024)
            #expect(try model.status().model.weights == .float32)
            try await model.unload()
        }

        @Test("Every key of a server's configuration is understood by the library.")
        func everyServerKey() async throws {
            var further = ServedModelConfig(modelPath: try #require(Fixture.path))
            further.modelID = "further"
            further.pinned = true
            further.keepAlive = -1
            var config = ServerConfig()
            config.host = "127.0.0.1"
            config.modelID = "served"
            config.queueLimit = 2
            config.allowedHosts = ["example.org"]
            config.allowedOrigins = ["https://example.org"]
            config.bodyLimitBytes = 4096
            config.models = [further]
            config.modelStore = false
            config.keepAlive = 2.5
            config.profiles = ["myOwn": Profile(maxTokens: 3)]
            try await Fixture.withClient(config) { client, _ in
                let names = try await client.listModels().map(\.id)
                #expect(Set(names) == ["served", "further"])
                var request = ChatRequest(model: "further", messages: [.user("hello")])
                request.extra = ["profile": "myOwn"]
                let answer = try await client.chatCompletion(request)
                #expect(answer.choices.first?.message.content?.text == "Hello, I")
            }
        }

        @Test("Calls from many tasks at once all get their answers.")
        func manyTasks() async throws {
            try await Fixture.withModel { model in
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for index in 0..<64 {
                        group.addTask {
                            switch index % 4 {
                            case 0: try await model.startServer()
                            case 1: #expect(try model.status().model.state == .ready)
                            case 2: _ = try await LibMlxRuntime.version()
                            default: try await Fixture.withModel { model in _ = try model.status() }
                            }
                        }
                    }
                    try await group.waitForAll()
                }
            }
        }

        @Test("A shutdown unloads every model; the library loads again afterwards.")
        func shutdown() async throws {
            let model = try await Model.load(Fixture.config)
            try await LibMlxRuntime.shutdown()
            #expect(await failure { try model.status() }?.code == .invalidHandle)
            let again = try await Fixture.withModel { try $0.status().model.state }
            #expect(again == .ready)
        }
    }
}

/// What is known of the calls without a model.
struct LibraryCallTests {
    @Test("Blocking calls, however many, leave Swift's threads free; no answer at all is insufficient_memory.")
    func blockingCalls() async throws {
        let clock = ContinuousClock()
        let duration = await clock.measure {
            await withTaskGroup(of: Void.self) { group in
                for _ in 0..<32 {
                    group.addTask {
                        let error = await failure {
                            try await Library.call {
                                #expect(!Thread.isMainThread)
                                Thread.sleep(forTimeInterval: 0.5)
                                return nil
                            } as Done
                        }
                        #expect(error?.code == .insufficientMemory)
                    }
                }
            }
        }
        #expect(duration < .seconds(5))
    }

    @Test("A configuration is written with the header's keys; names of profiles stay as they are.")
    func configurationKeys() throws {
        var load = LoadConfig(modelPath: "m")
        load.modelID = "x"
        load.cpuWeights = .quantized
        load.isolation = .inProcess
        load.logLevel = .debug
        load.generation = GenerationDefaults()
        load.generation?.topP = 0.5
        let loadJSON = try JSONDecoder().decode(
            JSONValue.self, from: Data(Library.json(load, adding: ["wait": false]).utf8))
        #expect(
            loadJSON == [
                "model_path": "m", "model_id": "x", "cpu_weights": "quantized", "isolation": "none",
                "log_level": "debug", "generation": ["top_p": 0.5], "wait": false,
            ])
        var server = ServerConfig()
        server.profiles = ["myOwn": Profile(maxPixels: 9)]
        server.suspendedRequests = .fail
        let serverJSON = try JSONDecoder().decode(JSONValue.self, from: Data(Library.json(server).utf8))
        #expect(serverJSON == ["profiles": ["myOwn": ["max_pixels": 9]], "suspended_requests": "fail"])
    }

    @Test("A number that JSON cannot hold is refused as an argument.")
    func infiniteKeepAlive() async {
        var server = ServerConfig()
        server.keepAlive = .infinity
        #expect(await failure { try Library.json(server) }?.code == .invalidArgument)
    }

    @Test("States, codes and keys that are new to this package do not keep an answer from being read.")
    func newValues() throws {
        let json = """
            {"ok": true, "handle": 1, "model": {"status": "dreaming", "model_id": "m", "model_path": "/m",
            "progress": 1, "stage": "", "error": {"code": "engine_bored", "message": "m", "hint": "", "more": 1},
            "context_length": null, "device": "npu", "weights": null, "blas": null, "colour": "red"},
            "server": {"status": "stopped", "host": null, "port": null, "base_url": null, "model_id": null,
            "uds": null, "api_key": null}}
            """
        let status = try JSONDecoder().decode(Status.self, from: Data(json.utf8))
        #expect(status.model.state.rawValue == "dreaming")
        #expect(status.model.error?.code.rawValue == "engine_bored")
        #expect(status.model.device?.rawValue == "npu")
    }
}
