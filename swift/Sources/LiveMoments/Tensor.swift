/// A dense array of float32, the last axis fastest.
public struct Tensor: Equatable, Sendable {
    public let shape: [Int]
    public var values: [Float]

    /// The number of values must be the product of the shape.
    public init(shape: [Int], values: [Float]) {
        precondition(shape.reduce(1, *) == values.count, "\(values.count) values do not fill the shape \(shape)")
        self.shape = shape
        self.values = values
    }
}

/// A picture as rows of pixels of `channels` values, nominally in [0, 1].
public struct Picture: Equatable, Sendable {
    public let size: Size
    public let channels: Int
    public var values: [Float]

    public init(size: Size, channels: Int, values: [Float]) {
        precondition(size.height * size.width * channels == values.count, "the values do not fill \(size)")
        self.size = size
        self.channels = channels
        self.values = values
    }

    /// 8-bit RGB, row after row, divided by 255 (runtime/resize.py: unit_float).
    public init(size: Size, rgb: [UInt8]) {
        self.init(size: size, channels: 3, values: rgb.map { Float($0) / 255 })
    }
}

/// (H, W, 3) in [0, 1] to (1, 3, H, W) in [-1, 1], clamped there (runtime/inputs.py: network_image).
func networkImage(_ picture: Picture) -> Tensor {
    let area = picture.size.height * picture.size.width
    var values = [Float](repeating: 0, count: picture.values.count)
    for pixel in 0..<area {
        for channel in 0..<picture.channels {
            let scaled = picture.values[pixel * picture.channels + channel] * 2 - 1
            values[channel * area + pixel] = min(max(scaled, -1), 1)
        }
    }
    return Tensor(shape: [1, picture.channels, picture.size.height, picture.size.width], values: values)
}

/// (1, C, H, W) to rows of pixels.
func rowsOfPixels(_ tensor: Tensor) -> Picture {
    let (channels, height, width) = (tensor.shape[1], tensor.shape[2], tensor.shape[3])
    var values = [Float](repeating: 0, count: tensor.values.count)
    for channel in 0..<channels {
        for pixel in 0..<(height * width) {
            values[pixel * channels + channel] = tensor.values[channel * height * width + pixel]
        }
    }
    return Picture(size: Size(height: height, width: width), channels: channels, values: values)
}
