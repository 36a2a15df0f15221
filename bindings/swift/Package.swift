// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "LibMlx",
    platforms: [.macOS(.v14)],
    products: [.library(name: "LibMlx", targets: ["LibMlx"])],
    targets: [
        .systemLibrary(name: "CLibMlx", pkgConfig: "lib_mlx"),
        .target(name: "LibMlx", dependencies: ["CLibMlx"]),
        .executableTarget(name: "lib-mlx-chat", dependencies: ["LibMlx"], path: "Examples/Chat"),
        .testTarget(name: "LibMlxTests", dependencies: ["LibMlx"]),
    ]
)
