/// What a window sees beyond the picture.
public enum Padding: Sendable {
    /// Mirrored without repeating the edge.
    case reflect
    case zero
}

/// A picture resized bicubically, computed window by window (runtime/resize.py: BicubicView). A picture that has the
/// size already is only cut: the kernel is exact there.
///
/// The arithmetic is torch's `interpolate(mode="bicubic", align_corners=False)` in float32: a = -0.75, half-pixel
/// centres, no antialiasing, border pixels replicated.
public struct BicubicView: Sendable {
    public let size: Size
    private let picture: Picture
    private let padding: Padding
    private let scale: [Float]?
    private let rows: [Taps]
    private let columns: [Taps]

    /// - Parameters:
    ///   - picture: the source.
    ///   - size: what it is resized to.
    ///   - padding: beyond the resized picture.
    ///   - scale: a factor a channel, applied after resizing.
    public init(_ picture: Picture, size: Size, padding: Padding = .reflect, scale: [Float]? = nil) {
        self.picture = picture
        self.size = size
        self.padding = padding
        self.scale = scale
        rows = Taps.along(source: picture.size.height, length: size.height)
        columns = Taps.along(source: picture.size.width, length: size.width)
    }

    /// The window whose first pixel is (y, x), which may lie outside.
    public func window(y: Int, x: Int, size window: Size) -> Picture {
        let channels = picture.channels
        let atRows = padIndices(start: y, count: window.height, length: size.height, padding: padding)
        let atColumns = padIndices(start: x, count: window.width, length: size.width, padding: padding)
        var values = [Float](repeating: 0, count: window.height * window.width * channels)
        var widened: [Int: [Float]] = [:]  // source rows, resized along their columns
        func widenedRow(_ row: Int) -> [Float] {
            if let found = widened[row] { return found }
            var line = [Float](repeating: 0, count: window.width * channels)
            for (place, column) in atColumns.enumerated() where column >= 0 {
                let taps = columns[column]
                for channel in 0..<channels {
                    line[place * channels + channel] = taps.sum { tap in
                        picture.values[(row * picture.size.width + tap) * channels + channel]
                    }
                }
            }
            widened[row] = line
            return line
        }
        for (line, row) in atRows.enumerated() where row >= 0 {
            let taps = rows[row]
            let lines = taps.indices.map(widenedRow)
            for (place, column) in atColumns.enumerated() where column >= 0 {
                for channel in 0..<channels {
                    let at = place * channels + channel
                    var sum = lines[0][at] * taps.weights[0]
                    for tap in 1..<4 { sum += lines[tap][at] * taps.weights[tap] }
                    values[line * window.width * channels + at] = scale.map { sum * $0[channel] } ?? sum
                }
            }
        }
        return Picture(size: window, channels: channels, values: values)
    }
}

/// For one output position of an axis, the four source positions read and their weights (resize.py: _cubic_taps).
struct Taps: Sendable {
    let indices: [Int]
    let weights: [Float]

    static func along(source: Int, length: Int) -> [Taps] {
        let ratio = Double(Float(source) / Float(length))
        return (0..<length).map { position in
            // One rounding, as torch's fused multiply-add: the product of two float32 is exact in float64
            let coordinate = Float(ratio * (Double(position) + 0.5) - 0.5)
            let floor = min(Int(coordinate.rounded(.down)), source - 1)
            let after = min(max(coordinate - Float(floor), 0), 1)
            let before = 1 - after
            return Taps(
                indices: (-1...2).map { min(max(floor + $0, 0), source - 1) },
                weights: [far(after + 1), near(after), near(before), far(before + 1)]
            )
        }
    }

    func sum(_ value: (Int) -> Float) -> Float {
        var total = value(indices[0]) * weights[0]
        for tap in 1..<4 { total += value(indices[tap]) * weights[tap] }
        return total
    }

    private static let a: Float = -0.75

    private static func near(_ x: Float) -> Float { ((a + 2) * x - (a + 3)) * x * x + 1 }

    private static func far(_ x: Float) -> Float { ((a * x - 5 * a) * x + 8 * a) * x - 4 * a }
}

/// Positions of a padded axis as positions of the axis itself, -1 where zeros lie (resize.py: pad_indices).
func padIndices(start: Int, count: Int, length: Int, padding: Padding) -> [Int] {
    (start..<(start + count)).map { position in
        switch padding {
        case .zero:
            return (0..<length).contains(position) ? position : -1
        case .reflect:
            let last = length - 1
            if last == 0 { return 0 }
            let period = 2 * last
            let inside = ((position % period) + period) % period
            return last - abs(inside - last)
        }
    }
}
