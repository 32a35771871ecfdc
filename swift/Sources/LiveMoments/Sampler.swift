import Foundation

/// Runs a bundle's stages, one tile at a time.
public protocol StageRunner {
    /// Computes one stage.
    ///
    /// - Parameters:
    ///   - stage: its name in the manifest, e.g. `vae_encoder`.
    ///   - inputs: by the manifest's names, e.g. `reference_k.0`.
    ///   - step: the schedule's point, for the stages that take one.
    ///   - size: of the images: the tile, or the padded video frame.
    func run(_ stage: String, _ inputs: [String: Tensor], step: Int?, size: Size) throws -> [String: Tensor]
}

/// When ReferenceNet runs (src/livemoments/types.py: ReferencePolicy).
public enum ReferencePolicy: Sendable {
    /// At every step: exact.
    case perStep
    /// Once, at the timestep of one step: a third less work, and another picture.
    case frozen(step: Int)
}

/// A tile's standard normal numbers, each (1, C, h, w) (runtime/noise.py: TileNoise).
public struct TileNoise: Sendable {
    public let posteriorFrame: Tensor
    public let posteriorReference: Tensor
    public let initial: Tensor

    public init(posteriorFrame: Tensor, posteriorReference: Tensor, initial: Tensor) {
        self.posteriorFrame = posteriorFrame
        self.posteriorReference = posteriorReference
        self.initial = initial
    }
}

/// Gives a tile its noise: (tile, (1, C, h, w)).
public typealias NoiseSource = (Tile, [Int]) -> TileNoise

/// Noise from a seed and the tile's corner: a SplitMix64 and Box and Muller's transform. It is not numpy's generator:
/// a seed gives another picture than `livemoments restore` does.
public func seededNoise(_ seed: UInt64) -> NoiseSource {
    { tile, shape in
        var state = seed &* 0x9E37_79B9_7F4A_7C15 ^ UInt64(tile.y) << 32 ^ UInt64(tile.x)
        func uniform() -> Double {
            state &+= 0x9E37_79B9_7F4A_7C15
            var mixed = state
            mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
            mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
            return (Double((mixed ^ (mixed >> 31)) >> 11) + 0.5) / 9_007_199_254_740_992
        }
        func drawn() -> Tensor {
            let count = shape.reduce(1, *)
            var values: [Float] = []
            values.reserveCapacity(count + 1)
            while values.count < count {
                let radius = (-2 * log(uniform())).squareRoot()
                let angle = 2 * Double.pi * uniform()
                values.append(Float(radius * cos(angle)))
                values.append(Float(radius * sin(angle)))
            }
            return Tensor(shape: shape, values: Array(values.prefix(count)))
        }
        return TileNoise(posteriorFrame: drawn(), posteriorReference: drawn(), initial: drawn())
    }
}

/// Euler steps from a noisy latent to a restored one (runtime/sampler.py: ResidentSampler).
///
/// - Parameters:
///   - latent: where sampling starts, (1, C, h, w).
///   - reference: the reference tile's clean latent.
///   - motion: what the stage `motion` made.
func sample(
    latent: Tensor, reference: Tensor, motion: [String: Tensor], plan: [Int], policy: ReferencePolicy,
    schedule: Manifest.Schedule, size: Size, runner: StageRunner
) throws -> Tensor {
    if case .frozen(let step) = policy, !plan.indices.contains(step) {
        throw LiveMomentsError("frozen at step \(step), but only 0 to \(plan.count - 1) are sampled")
    }
    let sigmas = plan.map { schedule.points[$0].sigma } + [0]
    var z = latent
    var keysValues: [String: Tensor] = [:]
    for (step, point) in plan.enumerated() {
        switch policy {
        case .perStep:
            keysValues = try runner.run("reference", ["latent": reference], step: point, size: size)
        case .frozen(let chosen):
            if step == 0 {
                keysValues = try runner.run("reference", ["latent": reference], step: plan[chosen], size: size)
            }
        }
        let inputs = keysValues.merging(motion) { own, _ in own }.merging(["latent": z]) { own, _ in own }
        let velocity = try output("velocity", of: runner.run("restoration", inputs, step: point, size: size))
        let length = Float(sigmas[step + 1] - sigmas[step])
        for place in z.values.indices { z.values[place] += length * velocity.values[place] }
    }
    return z
}

/// One output of a stage, finite.
func output(_ name: String, of outputs: [String: Tensor]) throws -> Tensor {
    guard let found = outputs[name] else { throw LiveMomentsError("no stage made '\(name)'") }
    guard found.values.allSatisfy(\.isFinite) else { throw LiveMomentsError("'\(name)' holds NaN or infinity") }
    return found
}
