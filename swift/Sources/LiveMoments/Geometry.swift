/// Height and width in pixels, written `WxH` (src/livemoments/types.py: Size).
public struct Size: Hashable, Sendable, CustomStringConvertible {
    public let height: Int
    public let width: Int

    public init(height: Int, width: Int) {
        self.height = height
        self.width = width
    }

    /// Reads `1024x768`: 768 high.
    public init?(_ text: String) {
        let parts = text.split(separator: "x", omittingEmptySubsequences: false)
        guard parts.count == 2, let width = Int(parts[0]), let height = Int(parts[1]), width > 0, height > 0 else {
            return nil
        }
        self.init(height: height, width: width)
    }

    public var description: String { "\(width)x\(height)" }
}

/// A tile's rectangle in the photo, in pixels; `index` counts tiles in row-major order.
public struct Tile: Hashable, Sendable {
    public let index: Int
    public let y: Int
    public let x: Int
    public let size: Size

    public init(index: Int, y: Int, x: Int, size: Size) {
        self.index = index
        self.y = y
        self.x = x
        self.size = size
    }
}

/// What went wrong, in one line.
public struct LiveMomentsError: Error, Equatable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
