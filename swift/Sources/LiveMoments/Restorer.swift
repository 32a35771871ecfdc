/// Restores a photo: the whole path of `livemoments restore` (runtime/restore.py), in plain Swift but for the stages.
///
/// Pictures are sRGB, or all of one profile; the three are at their own sizes, the two frames at one.
public struct Restorer {
    public let manifest: Manifest
    private let runner: StageRunner
    private let noise: NoiseSource

    /// - Parameters:
    ///   - manifest: of the bundle whose stages `runner` runs.
    ///   - noise: what is drawn for each tile.
    public init(manifest: Manifest, runner: StageRunner, noise: @escaping NoiseSource) {
        self.manifest = manifest
        self.runner = runner
        self.noise = noise
    }

    /// - Parameters:
    ///   - frame: the reselected video frame.
    ///   - photo: the key photo; the result has its size.
    ///   - photoFrame: the video frame at the photo's instant.
    ///   - steps: one of the bundle's step counts; `nil` is its own.
    /// - Returns: the restored photo in [0, 1].
    public func restore(
        frame: Picture, photo: Picture, photoFrame: Picture, steps: Int? = nil, policy: ReferencePolicy = .perStep
    ) throws -> Picture {
        guard frame.size == photoFrame.size else {
            throw LiveMomentsError("the frame is \(frame.size), the frame at the photo's instant \(photoFrame.size)")
        }
        let points = try manifest.plan(steps: steps)
        let plan = try TilePlan.balanced(
            size: photo.size, tileSizes: manifest.tileSizes(), overlap: manifest.overlap)
        let views = Views(
            frame: BicubicView(frame, size: photo.size),
            photo: BicubicView(photo, size: photo.size),
            photoFrame: BicubicView(photoFrame, size: photo.size)
        )
        // tiles/correspondence.py: FlowField
        let scale = [
            Float(Double(photo.size.width) / Double(frame.size.width)),
            Float(Double(photo.size.height) / Double(frame.size.height)),
        ]
        let flow = rowsOfPixels(try estimateFlow(networkImage(frame), networkImage(photoFrame)))
        let field = BicubicView(flow, size: photo.size, padding: .zero, scale: scale)
        var blender = Blender(size: photo.size)
        for tile in plan.tiles {
            let mean = try meanFlow(field.window(y: tile.y, x: tile.x, size: tile.size))
            let corner = try referenceCorner(tile: tile, mean: mean, bounds: plan.padded)
            blender.add(tile, try restoreTile(tile, corner, views, points, policy))
        }
        var content = try blender.result()
        for place in content.values.indices {  // color.py: to_unit_range
            content.values[place] = min(max(content.values[place] / 2 + 0.5, 0), 1)
        }
        return colourFix(content: content, style: views.frame.window(y: 0, x: 0, size: photo.size))
    }

    /// tiles/batch.py: TileCodec.encode, the sampler, TileCodec.decode.
    private func restoreTile(
        _ tile: Tile, _ corner: ReferenceCorner, _ views: Views, _ points: [Int], _ policy: ReferencePolicy
    ) throws -> Picture {
        let frame = networkImage(views.frame.window(y: tile.y, x: tile.x, size: tile.size))
        let photo = networkImage(views.photo.window(y: corner.y, x: corner.x, size: tile.size))
        let photoFrame = networkImage(views.photoFrame.window(y: corner.y, x: corner.x, size: tile.size))
        let model = manifest.model
        let shape = [
            1, model.latentChannels, tile.size.height / model.vaeScale, tile.size.width / model.vaeScale,
        ]
        let drawn = noise(tile, shape)
        let flow = try estimateFlow(photoFrame, frame)
        let motion = try runner.run("motion", ["flow": flow], step: nil, size: tile.size)
        var latent = try encode(frame, drawn.posteriorFrame)
        let reference = try encode(photo, drawn.posteriorReference)
        let level = manifest.schedule.noiseLevel
        for place in latent.values.indices {
            latent.values[place] = (1 - level) * latent.values[place] + level * drawn.initial.values[place]
        }
        var restored = try sample(
            latent: latent, reference: reference, motion: motion, plan: points, policy: policy,
            schedule: manifest.schedule, size: tile.size, runner: runner)
        for place in restored.values.indices {
            restored.values[place] = restored.values[place] / model.latentScaling + model.latentShift
        }
        let decoded = try runner.run("vae_decoder", ["latent": restored], step: nil, size: tile.size)
        return rowsOfPixels(try output("image", of: decoded))
    }

    private func encode(_ image: Tensor, _ noise: Tensor) throws -> Tensor {
        let size = Size(height: image.shape[2], width: image.shape[3])
        let posterior = try runner.run("vae_encoder", ["image": image], step: nil, size: size)
        var latent = try output("mean", of: posterior)
        let std = try output("std", of: posterior)
        for place in latent.values.indices {
            let drawn = latent.values[place] + std.values[place] * noise.values[place]
            latent.values[place] = (drawn - manifest.model.latentShift) * manifest.model.latentScaling
        }
        return latent
    }

    /// RAFT at a multiple of 8 pixels, the images' borders repeated at both ends (runtime/flow.py: EngineFlow).
    private func estimateFlow(_ first: Tensor, _ second: Tensor) throws -> Tensor {
        let (height, width) = (first.shape[2], first.shape[3])
        let (top, tall) = Restorer.split(height)
        let (left, wide) = Restorer.split(width)
        func padded(_ image: Tensor) -> Tensor {
            var values: [Float] = []
            values.reserveCapacity(3 * tall * wide)
            for channel in 0..<3 {
                for row in 0..<tall {
                    let line = (channel * height + min(max(row - top, 0), height - 1)) * width
                    for column in 0..<wide { values.append(image.values[line + min(max(column - left, 0), width - 1)]) }
                }
            }
            return Tensor(shape: [1, 3, tall, wide], values: values)
        }
        let inputs = ["image1": padded(first), "image2": padded(second)]
        let flow = try output(
            "flow", of: runner.run("flow", inputs, step: nil, size: Size(height: tall, width: wide)))
        var values: [Float] = []
        for channel in 0..<2 {
            for row in 0..<height {
                let line = (channel * tall + row + top) * wide + left
                values += flow.values[line..<(line + width)]
            }
        }
        return Tensor(shape: [1, 2, height, width], values: values)
    }

    /// Pixels before an axis, and its padded length; the smaller half comes first.
    private static func split(_ length: Int) -> (before: Int, padded: Int) {
        let pad = (8 - length % 8) % 8
        return (pad / 2, length + pad)
    }
}

private struct Views {
    let frame: BicubicView
    let photo: BicubicView
    let photoFrame: BicubicView
}
