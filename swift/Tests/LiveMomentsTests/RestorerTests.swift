import Foundation
import XCTest

@testable import LiveMoments

/// Stages of invented arithmetic: each output depends on each input. `tools/swift_fixtures.py` has the same in numpy.
struct InventedStages: StageRunner {
    func run(_ stage: String, _ inputs: [String: Tensor], step: Int?, size: Size) throws -> [String: Tensor] {
        switch stage {
        case "flow":
            let (first, second) = (inputs["image1"]!, inputs["image2"]!)
            return [
                "flow": fill([1, 2, size.height, size.width]) { at in
                    4 * (second[0, at[1], at[2], at[3]] - first[0, at[1], at[2], at[3]]) + [5, -3][at[1]]
                }
            ]
        case "vae_encoder":
            let image = inputs["image"]!
            let shape = [1, 16, size.height / 8, size.width / 8]
            return [
                "mean": fill(shape) { at in 0.5 * image[0, at[1] % 3, 8 * at[2] + at[1] % 8, 8 * at[3] + 3 * at[1] % 8] },
                "std": fill(shape) { at in 0.05 * (1 + image[0, (at[1] + 1) % 3, 8 * at[2], 8 * at[3]]) },
            ]
        case "motion":
            let flow = inputs["flow"]!
            let columns = size.width / 16
            return [
                "motion_bias": fill([2, 1, size.height / 16 * columns, 8]) { at in
                    Float(at[0] + 1) * 0.01 * flow[0, at[3] % 2, at[2] / columns * 16, at[2] % columns * 16]
                }
            ]
        case "reference":
            let latent = inputs["latent"]!
            let columns = size.width / 16
            let when = 1 + 0.1 * Float(step!)
            var made: [String: Tensor] = [:]
            for block in 0..<2 {
                let shape = [1, size.height / 16 * columns, 8]
                func at(_ channel: Int, _ token: Int) -> Float {
                    latent[0, channel, token / columns * 2, token % columns * 2]
                }
                made["reference_k.\(block)"] = fill(shape) { Float(block + 1) * when * at($0[2], $0[1]) }
                made["reference_v.\(block)"] = fill(shape) { when * at($0[2] + 8, $0[1]) }
            }
            return made
        case "restoration":
            let (latent, motion) = (inputs["latent"]!, inputs["motion_bias"]!)
            let columns = size.width / 16
            let when = 1 + 0.05 * Float(step!)
            return [
                "velocity": fill(latent.shape) { at in
                    let token = at[2] / 2 * columns + at[3] / 2
                    var sum = 0.5 * latent[0, at[1], at[2], at[3]]
                    for block in 0..<2 {
                        let key = inputs["reference_k.\(block)"]![0, token, at[1] % 8]
                        let value = inputs["reference_v.\(block)"]![0, token, (at[1] + 1) % 8]
                        sum += 0.1 * (key + motion[block, 0, token, at[1] % 8]) - 0.2 * value
                    }
                    return sum * when
                }
            ]
        case "vae_decoder":
            let latent = inputs["latent"]!
            return [
                "image": fill([1, 3, size.height, size.width]) { at in
                    let (y, x) = (at[2] / 8, at[3] / 8)
                    return latent[0, 5 * at[1], y, x] + latent[0, 5 * at[1] + 1, y, x] * Float(at[3] % 8) / 8
                }
            ]
        default:
            throw LiveMomentsError("no stage \(stage)")
        }
    }
}

private func fill(_ shape: [Int], _ value: ([Int]) -> Float) -> Tensor {
    var values: [Float] = []
    for place in 0..<shape.reduce(1, *) {
        var (rest, at) = (place, [Int](repeating: 0, count: shape.count))
        for axis in shape.indices.reversed() {
            at[axis] = rest % shape[axis]
            rest /= shape[axis]
        }
        values.append(value(at))
    }
    return Tensor(shape: shape, values: values)
}

extension Tensor {
    subscript(_ at: Int...) -> Float {
        values[zip(at, shape).reduce(0) { $0 * $1.1 + $1.0 }]
    }
}

/// A noise that both languages make the same.
private func inventedNoise(_ tile: Tile, _ shape: [Int]) -> TileNoise {
    func drawn(_ kind: Int) -> Tensor {
        let count = shape.reduce(1, *)
        return Tensor(
            shape: shape,
            values: (0..<count).map { Float(($0 * 7919 + tile.index * 104_729 + kind * 1_299_709) % 2001) / 1000 - 1 })
    }
    return TileNoise(posteriorFrame: drawn(0), posteriorReference: drawn(1), initial: drawn(2))
}

/// Slanted triangle waves, by integers alone; moved with `instant`.
private func inventedPicture(_ size: Size, _ instant: Int) -> Picture {
    func floored(_ value: Int, _ period: Int) -> Int { ((value % period) + period) % period }
    var rgb: [UInt8] = []
    for y in 0..<size.height {
        for x in 0..<size.width {
            for c in 0..<3 {
                let across = x * 600 / size.width + 40 * c + 13 * instant
                let down = y * 500 / size.height + 25 * c - 9 * instant
                rgb.append(
                    UInt8(abs(floored(across + down, 254) - 127) + abs(floored(across - 2 * down, 250) - 125)))
            }
        }
    }
    return Picture(size: size, rgb: rgb)
}

final class RestorerTests: XCTestCase {
    private var manifest: Manifest {
        get throws { try Manifest.read(Data(Recorded.all.manifest.utf8)) }
    }

    func testPhotosAreThePythonRuntimes() throws {
        for recorded in Recorded.all.photos {
            let restorer = Restorer(manifest: try manifest, runner: InventedStages(), noise: inventedNoise)
            let (size, frame) = (Size(recorded.size)!, Size(recorded.frame)!)
            let got = try restorer.restore(
                frame: inventedPicture(frame, 1), photo: inventedPicture(size, 0),
                photoFrame: inventedPicture(frame, 0), steps: recorded.steps,
                policy: recorded.frozen.map { .frozen(step: $0) } ?? .perStep)
            XCTAssertEqual(got.values.count, recorded.result.count)
            let levels = zip(got.values, recorded.result).map { abs(($0 * 255).rounded(.toNearestOrEven) - Float($1)) }
            XCTAssertLessThanOrEqual(levels.max()!, 1)
            XCTAssertLessThanOrEqual(levels.filter { $0 > 0 }.count, levels.count / 1000)
        }
    }

    func testWhatDoesNotFitIsRefused() throws {
        let restorer = Restorer(manifest: try manifest, runner: InventedStages(), noise: inventedNoise)
        let small = Picture(size: Size(height: 8, width: 8), channels: 3, values: .init(repeating: 0, count: 192))
        let other = Picture(size: Size(height: 4, width: 8), channels: 3, values: .init(repeating: 0, count: 96))
        XCTAssertThrowsError(try restorer.restore(frame: small, photo: small, photoFrame: small))
        XCTAssertThrowsError(try restorer.restore(frame: small, photo: small, photoFrame: other))
        XCTAssertThrowsError(try manifest.plan(steps: 77))
        XCTAssertThrowsError(try manifest.graph("reference", Size(height: 24, width: 24)))
        XCTAssertThrowsError(try output("mean", of: ["mean": Tensor(shape: [1], values: [.nan])]))
        XCTAssertThrowsError(try output("mean", of: [:]))
    }

    func testManifestsThatCannotBeTrustedAreRefused() throws {
        let text = Recorded.all.manifest
        for (old, new) in [
            ("\"schema_version\":1", "\"schema_version\":2"), ("\"per-block\"", "\"stacked\""),
            ("\"motion/64x64.onnx\":{", "\"../64x64.onnx\":{"), ("\"overlap\"", "\"overlapping\""),
        ] {
            XCTAssertTrue(text.contains(old), old)
            XCTAssertThrowsError(try Manifest.read(Data(text.replacingOccurrences(of: old, with: new).utf8)), new)
        }
    }

    func testABundleOnDiskIsChecked() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: folder) }
        XCTAssertThrowsError(try LiveMoments.Bundle(folder: folder))
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(Recorded.all.manifest.utf8).write(to: folder.appendingPathComponent("manifest.json"))
        XCTAssertThrowsError(try LiveMoments.Bundle(folder: folder))
        for (name, entry) in try manifest.files {
            let file = folder.appendingPathComponent(name)
            try FileManager.default.createDirectory(
                at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(count: entry.bytes).write(to: file)
        }
        XCTAssertEqual(try LiveMoments.Bundle(folder: folder).manifest.tiles, ["64x64"])
        try Data(count: 1).write(to: folder.appendingPathComponent("motion/64x64.onnx"))
        XCTAssertThrowsError(try LiveMoments.Bundle(folder: folder)) { error in
            XCTAssertTrue("\(error)".contains("motion/64x64.onnx has 1 bytes"), "\(error)")
        }
    }
}
