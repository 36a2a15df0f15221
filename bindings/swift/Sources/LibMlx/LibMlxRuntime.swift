internal import CLibMlx

/// What concerns the library as a whole.
public enum LibMlxRuntime {
    /// Describes the library that was found at run time; starts no Python.
    public static func version() async throws(LibMlxError) -> LibraryVersion {
        try await Library.call { lib_mlx_version() }
    }

    /// Stops every server, cancels every load and unloads every model: about 3 seconds at most.
    ///
    /// The library stays usable. Calling it is optional, before the process ends too.
    public static func shutdown() async throws(LibMlxError) {
        let _: Done = try await Library.call { lib_mlx_shutdown() }
    }
}
