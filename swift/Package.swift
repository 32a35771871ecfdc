// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "LiveMoments",
    platforms: [.macOS("15.0"), .iOS("18.0")],
    products: [.library(name: "LiveMoments", targets: ["LiveMoments"])],
    targets: [
        .target(name: "LiveMoments"),
        .testTarget(name: "LiveMomentsTests", dependencies: ["LiveMoments"], resources: [.copy("recorded.json")]),
    ]
)
