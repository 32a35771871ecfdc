import Foundation
import XCTest

@testable import LiveMoments

/// What `tools/swift_fixtures.py` recorded of the Python runtime.
struct Recorded: Decodable {
    struct Plan: Decodable {
        let size: String
        let tiles: [String]
        let overlap: Int
        let padSmall: Bool
        let padded: String
        let tile: String
        let corners: [[Int]]
    }

    struct Array3: Decodable {
        let shape: [Int]
        let values: [Float]

        var picture: Picture {
            Picture(size: Size(height: shape[0], width: shape[1]), channels: shape[2], values: values)
        }
    }

    struct Window: Decodable {
        let source: Array3
        let size: String
        let padding: String
        let scale: [Float]?
        let at: [Int]
        let window: Array3
    }

    struct Corner: Decodable {
        let tile: [Int]
        let mean: [Float]
        let bounds: String
        let corner: [Int]
        let clamped: Bool
    }

    struct Blend: Decodable {
        let size: String
        let tiles: [[Int]]
        let values: [Array3]
        let result: Array3
    }

    struct Colour: Decodable {
        let content: Array3
        let style: Array3
        let result: Array3
    }

    struct Photo: Decodable {
        let size: String
        let frame: String
        let steps: Int
        let frozen: Int?
        /// 8-bit RGB, base64.
        let result: Data
    }

    let manifest: String
    let plans: [Plan]
    let windows: [Window]
    let flow: Array3
    let mean: [Float]
    let corners: [Corner]
    let blend: Blend
    let colours: [Colour]
    let photos: [Photo]

    static let all: Recorded = {
        let url = Foundation.Bundle.module.url(forResource: "recorded", withExtension: "json")!
        return try! JSONDecoder().decode(Recorded.self, from: Data(contentsOf: url))
    }()
}

/// The worst distance of two pictures of one shape.
func worst(_ got: Picture, _ want: Picture, file: StaticString = #filePath, line: UInt = #line) -> Float {
    XCTAssertEqual(got.size, want.size, file: file, line: line)
    XCTAssertEqual(got.channels, want.channels, file: file, line: line)
    return zip(got.values, want.values).map { abs($0 - $1) }.max() ?? .infinity
}
