import XCTest

@testable import LiveMoments

final class PartsTests: XCTestCase {
    func testPlans() throws {
        for recorded in Recorded.all.plans {
            let plan = try TilePlan.balanced(
                size: Size(recorded.size)!, tileSizes: recorded.tiles.map { Size($0)! }, overlap: recorded.overlap,
                padSmall: recorded.padSmall)
            XCTAssertEqual("\(plan.padded)", recorded.padded)
            XCTAssertEqual("\(plan.tile)", recorded.tile)
            XCTAssertEqual(plan.tiles.map { [$0.y, $0.x] }, recorded.corners)
            XCTAssertEqual(plan.tiles.map(\.index), Array(plan.tiles.indices))
        }
        let tile = [Size(height: 64, width: 64)]
        XCTAssertThrowsError(try TilePlan.balanced(size: Size(height: 40, width: 90), tileSizes: tile, overlap: 8))
        XCTAssertThrowsError(try TilePlan.balanced(size: Size(height: 90, width: 90), tileSizes: tile, overlap: 64))
        XCTAssertThrowsError(try TilePlan.balanced(size: Size(height: 90, width: 90), tileSizes: [], overlap: 8))
    }

    func testWindowsOfResizedPictures() {
        for recorded in Recorded.all.windows {
            let view = BicubicView(
                recorded.source.picture, size: Size(recorded.size)!,
                padding: recorded.padding == "zero" ? .zero : .reflect, scale: recorded.scale)
            let want = recorded.window.picture
            let got = view.window(y: recorded.at[0], x: recorded.at[1], size: want.size)
            XCTAssertLessThanOrEqual(worst(got, want), 1e-5 * (want.values.map(abs).max() ?? 1))
        }
    }

    func testMeanFlowAndCorners() throws {
        let mean = try meanFlow(Recorded.all.flow.picture)
        XCTAssertEqual([mean.dx, mean.dy], Recorded.all.mean)
        for recorded in Recorded.all.corners {
            let size = Size(height: recorded.tile[2], width: recorded.tile[3])
            let corner = try referenceCorner(
                tile: Tile(index: 0, y: recorded.tile[0], x: recorded.tile[1], size: size),
                mean: (dx: recorded.mean[0], dy: recorded.mean[1]), bounds: Size(recorded.bounds)!)
            XCTAssertEqual([corner.y, corner.x], recorded.corner)
            XCTAssertEqual(corner.clamped, recorded.clamped)
        }
        var broken = Recorded.all.flow.picture
        broken.values[3] = .nan
        XCTAssertThrowsError(try meanFlow(broken))
        let tile = Tile(index: 0, y: 0, x: 0, size: Size(height: 64, width: 64))
        XCTAssertThrowsError(try referenceCorner(tile: tile, mean: (0, 0), bounds: Size(height: 63, width: 64)))
        let far = try referenceCorner(tile: tile, mean: (-1e30, 1e30), bounds: Size(height: 80, width: 90))
        XCTAssertEqual(far, ReferenceCorner(y: 16, x: 0, clamped: true))
    }

    func testBlending() throws {
        let recorded = Recorded.all.blend
        var blender = Blender(size: Size(recorded.size)!, channels: recorded.result.shape[2])
        XCTAssertThrowsError(try blender.result())
        for (index, (corner, values)) in zip(recorded.tiles, recorded.values).enumerated() {
            let picture = values.picture
            blender.add(Tile(index: index, y: corner[0], x: corner[1], size: picture.size), picture)
        }
        XCTAssertLessThanOrEqual(worst(try blender.result(), recorded.result.picture), 1e-6)
    }

    func testColourFix() {
        for recorded in Recorded.all.colours {
            let got = colourFix(content: recorded.content.picture, style: recorded.style.picture)
            XCTAssertLessThanOrEqual(worst(got, recorded.result.picture), 1e-6)
        }
    }

    func testSizesAreReadStrictly() {
        XCTAssertEqual(Size("1024x768"), Size(height: 768, width: 1024))
        for text in ["", "x", "12", "12x", "0x5", "-1x5", "1x2x3", "axb"] { XCTAssertNil(Size(text), text) }
    }

    func testSeededNoiseIsNormalAndTheTiles() {
        let size = Size(height: 64, width: 64)
        let noise = seededNoise(7)
        let shape = [1, 16, 32, 32]
        let first = noise(Tile(index: 0, y: 0, x: 0, size: size), shape)
        XCTAssertEqual(first.initial, seededNoise(7)(Tile(index: 5, y: 0, x: 0, size: size), shape).initial)
        let others = [
            first.posteriorFrame, first.posteriorReference, noise(Tile(index: 1, y: 0, x: 48, size: size), shape).initial,
            seededNoise(8)(Tile(index: 0, y: 0, x: 0, size: size), shape).initial,
        ]
        for other in others { XCTAssertNotEqual(first.initial, other) }
        let values = first.initial.values.map(Double.init)
        let mean = values.reduce(0, +) / Double(values.count)
        let variance = values.map { ($0 - mean) * ($0 - mean) }.reduce(0, +) / Double(values.count)
        XCTAssertEqual(mean, 0, accuracy: 0.05)
        XCTAssertEqual(variance, 1, accuracy: 0.05)
    }
}
