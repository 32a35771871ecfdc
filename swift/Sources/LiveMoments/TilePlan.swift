/// The tiles of one photo (runtime/tiles/plan.py).
public struct TilePlan: Equatable, Sendable {
    /// The photo's size.
    public let size: Size
    /// What the tiles cover; larger than `size` where the photo is smaller than a tile.
    public let padded: Size
    /// Every tile's size.
    public let tile: Size
    /// Row-major.
    public let tiles: [Tile]

    /// The fewest tiles that cover the photo, evenly spread from edge to edge (plan.py: plan_balanced).
    ///
    /// - Parameters:
    ///   - size: the photo's size.
    ///   - tileSizes: what can be computed; a plan uses one of them.
    ///   - overlap: the least overlap of neighbouring tiles, in pixels.
    ///   - padSmall: plan a photo that is smaller than every tile as if it were padded.
    public static func balanced(
        size: Size, tileSizes: [Size], overlap: Int, padSmall: Bool = false
    ) throws -> TilePlan {
        for tile in tileSizes where overlap < 0 || overlap >= min(tile.height, tile.width) {
            throw LiveMomentsError("an overlap of \(overlap) pixels does not fit tiles of \(tile)")
        }
        let fitting = tileSizes.filter { $0.height <= size.height && $0.width <= size.width }
        if fitting.isEmpty && !(padSmall && !tileSizes.isEmpty) {
            throw LiveMomentsError("the photo is \(size) pixels, smaller than every tile size of the bundle")
        }
        let plans = (fitting.isEmpty ? tileSizes : fitting).map { cover(size, with: $0, overlap: overlap) }
        // The first of the least, as Python's min
        return plans.dropFirst().reduce(plans[0]) { cost($1).lexicographicallyPrecedes(cost($0)) ? $1 : $0 }
    }

    private static func cost(_ plan: TilePlan) -> [Int] {
        let padding = plan.padded.height * plan.padded.width - plan.size.height * plan.size.width
        return [padding, plan.tiles.count, plan.tiles.count * plan.tile.height * plan.tile.width]
    }

    private static func cover(_ size: Size, with tile: Size, overlap: Int) -> TilePlan {
        let padded = Size(height: max(size.height, tile.height), width: max(size.width, tile.width))
        let rows = axis(padded.height, tile.height, overlap)
        let columns = axis(padded.width, tile.width, overlap)
        var tiles: [Tile] = []
        for y in rows {
            for x in columns {
                tiles.append(Tile(index: tiles.count, y: y, x: x, size: tile))
            }
        }
        return TilePlan(size: size, padded: padded, tile: tile, tiles: tiles)
    }

    /// First pixels of the fewest tiles that cover `length`, the gaps between them equal to a pixel.
    private static func axis(_ length: Int, _ tile: Int, _ overlap: Int) -> [Int] {
        let count = length == tile ? 1 : (length - overlap + tile - overlap - 1) / (tile - overlap)
        return count == 1 ? [0] : (0..<count).map { $0 * (length - tile) / (count - 1) }
    }
}
