import Testing
@testable import LibMlx
@Test func v() async throws { _ = try await LibMlxRuntime.version() }
