import Foundation

/// A bundle's `manifest.json`: of it, what a restoration needs (src/livemoments/manifest.py).
public struct Manifest: Codable, Sendable {
    public struct FileEntry: Codable, Sendable {
        public let sha256: String
        public let bytes: Int
    }

    public struct Model: Codable, Sendable {
        public let latentChannels: Int
        public let vaeScale: Int
        public let latentShift: Float
        public let latentScaling: Float

        enum CodingKeys: String, CodingKey {
            case latentChannels = "latent_channels"
            case vaeScale = "vae_scale"
            case latentShift = "latent_shift"
            case latentScaling = "latent_scaling"
        }
    }

    public struct Point: Codable, Sendable {
        public let timestep: Double
        public let sigma: Double
    }

    public struct Schedule: Codable, Sendable {
        public let points: [Point]
        public let plans: [String: [Int]]
        public let defaultSteps: Int
        public let noiseLevel: Float

        enum CodingKeys: String, CodingKey {
            case points, plans
            case defaultSteps = "default_steps"
            case noiseLevel = "noise_level"
        }
    }

    public struct Spec: Codable, Sendable {
        public let name: String
        public let dtype: String
    }

    public struct Graph: Codable, Sendable {
        public let path: String
        public let size: String
        public let weights: [String]
        public let inputs: [Spec]
        public let outputs: [Spec]
    }

    public struct Stage: Codable, Sendable {
        public let graphs: [Graph]
    }

    public let schemaVersion: Int
    public let target: String
    public let model: Model
    public let schedule: Schedule
    public let tiles: [String]
    public let overlap: Int
    public let kvLayout: String
    public let stages: [String: Stage]
    public let files: [String: FileEntry]

    enum CodingKeys: String, CodingKey {
        case target, model, schedule, tiles, overlap, stages, files
        case schemaVersion = "schema_version"
        case kvLayout = "kv_layout"
    }

    /// Reads a manifest, and refuses one of another schema, or whose files would lie outside the bundle.
    public static func read(_ data: Data) throws -> Manifest {
        let found: Manifest
        do {
            found = try JSONDecoder().decode(Manifest.self, from: data)
        } catch {
            throw LiveMomentsError("manifest.json cannot be read: \(error)")
        }
        guard found.schemaVersion == 1 else {
            throw LiveMomentsError("the bundle's schema is version \(found.schemaVersion); this package reads 1")
        }
        guard found.kvLayout == "per-block" else {
            throw LiveMomentsError("the bundle passes keys and values as '\(found.kvLayout)'; this takes per-block")
        }
        for name in found.files.keys where name.hasPrefix("/") || name.split(separator: "/").contains("..") {
            throw LiveMomentsError("the manifest lists '\(name)', which lies outside the bundle")
        }
        return found
    }

    /// The sizes for which every stage has a graph.
    public func tileSizes() throws -> [Size] {
        try tiles.map { text in
            guard let size = Size(text) else { throw LiveMomentsError("'\(text)' is no tile size") }
            return size
        }
    }

    /// A stage's graph for images of a size: an exact match, else one that takes any.
    public func graph(_ stage: String, _ size: Size) throws -> Graph {
        let graphs = stages[stage]?.graphs ?? []
        guard let found = graphs.first(where: { $0.size == "\(size)" }) ?? graphs.first(where: { $0.size == "any" })
        else {
            throw LiveMomentsError("the bundle's stage '\(stage)' has no graph for images of \(size)")
        }
        return found
    }

    /// The schedule's points for so many steps: the bundle's own plan, exactly.
    public func plan(steps: Int?) throws -> [Int] {
        let count = steps ?? schedule.defaultSteps
        guard let plan = schedule.plans["\(count)"], !plan.isEmpty, plan.allSatisfy(schedule.points.indices.contains)
        else {
            let known = schedule.plans.keys.sorted().joined(separator: ", ")
            throw LiveMomentsError("the bundle has no plan for \(count) steps; it has \(known)")
        }
        return plan
    }
}

/// A bundle on disk whose files are there and as long as the manifest says. Hashes are not read:
/// `livemoments verify` does that where the bundle is made.
public struct Bundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    public init(folder: URL) throws {
        self.folder = folder
        guard let data = try? Data(contentsOf: folder.appendingPathComponent("manifest.json")) else {
            throw LiveMomentsError("\(folder.path) has no manifest.json: it is no bundle")
        }
        manifest = try Manifest.read(data)
        for (name, entry) in manifest.files.sorted(by: { $0.key < $1.key }) {
            let path = folder.appendingPathComponent(name).path
            let attributes = try? FileManager.default.attributesOfItem(atPath: path)
            guard let bytes = (attributes?[.size] as? NSNumber)?.intValue else {
                throw LiveMomentsError("the bundle's file \(name) is missing")
            }
            guard bytes == entry.bytes else {
                throw LiveMomentsError("the bundle's file \(name) has \(bytes) bytes, not \(entry.bytes)")
            }
        }
    }
}
