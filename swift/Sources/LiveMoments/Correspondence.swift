/// Where a reference tile lies: its first row and column, and whether the photo's bounds moved it.
public struct ReferenceCorner: Equatable, Sendable {
    public let y: Int
    public let x: Int
    public let clamped: Bool
}

/// PCR, the paper's equations 5 and 6 (runtime/tiles/correspondence.py).
///
/// - Parameters:
///   - flow: of a tile, x then y, in pixels of the photo; zeros beyond the photo count.
/// - Returns: the mean displacement, summed in float64 and rounded to float32 (mean_flow).
public func meanFlow(_ flow: Picture) throws -> (dx: Float, dy: Float) {
    var (x, y) = (0.0, 0.0)
    for place in stride(from: 0, to: flow.values.count, by: 2) {
        x += Double(flow.values[place])
        y += Double(flow.values[place + 1])
    }
    let count = Double(flow.size.height * flow.size.width)
    let mean = (dx: Float(x / count), dy: Float(y / count))
    guard mean.dx.isFinite, mean.dy.isFinite else {
        throw LiveMomentsError("the optical flow between the video frames is not finite")
    }
    return mean
}

/// The reference tile's corner: truncated toward zero as upstream does, then clamped into `bounds` (reference_corner).
public func referenceCorner(tile: Tile, mean: (dx: Float, dy: Float), bounds: Size) throws -> ReferenceCorner {
    guard tile.size.height <= bounds.height, tile.size.width <= bounds.width else {
        throw LiveMomentsError("a tile of \(tile.size) does not fit an image of \(bounds)")
    }
    func corner(_ start: Int, _ length: Int, _ shift: Float, _ bound: Int) -> (wanted: Int, inside: Int) {
        let half = Double(length / 2)
        let wanted = (Double(start) + half + Double(shift) - half).rounded(.towardZero)
        // Far outside is outside: what does not fit an Int is clamped before it becomes one
        let held = Int(min(max(wanted, -1e15), 1e15))
        return (held, min(max(held, 0), bound - length))
    }
    let y = corner(tile.y, tile.size.height, mean.dy, bounds.height)
    let x = corner(tile.x, tile.size.width, mean.dx, bounds.width)
    return ReferenceCorner(y: y.inside, x: x.inside, clamped: y.inside != y.wanted || x.inside != x.wanted)
}
