/// Accumulates tiles into one weighted mean (runtime/tiles/blend.py: Blender). Add them in the plan's order.
public struct Blender {
    private let size: Size
    private let channels: Int
    private var sum: [Float]
    private var weight: [Float]

    public init(size: Size, channels: Int = 3) {
        self.size = size
        self.channels = channels
        sum = [Float](repeating: 0, count: size.height * size.width * channels)
        weight = [Float](repeating: 0, count: size.height * size.width)
    }

    /// Adds one tile; what of it lies beyond the photo is dropped.
    public mutating func add(_ tile: Tile, _ values: Picture) {
        precondition(values.size == tile.size && values.channels == channels, "the values do not fit the tile")
        let rows = Blender.axisWeight(tile.size.height)
        let columns = Blender.axisWeight(tile.size.width)
        for row in 0..<tile.size.height where (0..<size.height).contains(tile.y + row) {
            for column in 0..<tile.size.width where (0..<size.width).contains(tile.x + column) {
                let own = rows[row] * columns[column]
                let target = (tile.y + row) * size.width + tile.x + column
                let source = (row * tile.size.width + column) * channels
                for channel in 0..<channels {
                    sum[target * channels + channel] += values.values[source + channel] * own
                }
                weight[target] += own
            }
        }
    }

    /// The blended picture.
    public func result() throws -> Picture {
        guard weight.allSatisfy({ $0 > 0 }) else { throw LiveMomentsError("the tiles do not cover the photo") }
        var values = sum
        for place in values.indices { values[place] /= weight[place / channels] }
        return Picture(size: size, channels: channels, values: values)
    }

    /// (1 - x^2) at the pixels' centres, x from -1 to 1 over the tile (blend.py: _axis_weight).
    static func axisWeight(_ length: Int) -> [Float] {
        (0..<length).map { index in
            let position = Float(Double(2 * index + 1) / Double(length) - 1)
            return 1 - position * position
        }
    }
}
