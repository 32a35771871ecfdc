#if canImport(CoreML)
import CoreML
import Foundation

// Never compiled and never run: no Mac was at hand. Everything else of this package is built and tested on Linux.

/// A bundle's Core ML packages, run by the system (src/livemoments/coreml/backend.py: CoreMlEngine).
///
/// A stage's packages are compiled and loaded when it first runs; `unload` lets them go.
@available(macOS 15.0, iOS 18.0, *)
public final class CoreMLRunner: StageRunner {
    private let bundle: Bundle
    private let units: MLComputeUnits
    private var loaded: [String: [MLModel]] = [:]

    /// - Parameter units: never `.cpuAndNeuralEngine` unasked: where it does not compile a program, the process may be
    ///   killed at its first prediction (apple/coremltools issue 2758).
    public init(bundle: Bundle, units: MLComputeUnits = .cpuAndGPU) throws {
        guard bundle.manifest.target == "coreml" else {
            throw LiveMomentsError("the bundle was made for '\(bundle.manifest.target)', not coreml")
        }
        self.bundle = bundle
        self.units = units
    }

    /// Frees a stage's models.
    public func unload(_ stage: String) {
        loaded = loaded.filter { !$0.key.hasPrefix("\(stage) ") }
    }

    public func run(
        _ stage: String, _ inputs: [String: Tensor], step: Int?, size: Size
    ) throws -> [String: Tensor] {
        let graph = try bundle.manifest.graph(stage, size)
        var values: [String: MLMultiArray] = [:]
        for (name, tensor) in inputs { values[featureName(name)] = multiArray(tensor) }
        if let step {
            let array = try MLMultiArray(shape: [1], dataType: .int32)
            array[0] = NSNumber(value: step)
            values["step"] = array
        }
        for model in try models(stage, graph) {
            let wanted = model.modelDescription.inputDescriptionsByName
            var features: [String: MLFeatureValue] = [:]
            for (name, description) in wanted {
                guard let type = description.multiArrayConstraint?.dataType else {
                    throw LiveMomentsError("stage '\(stage)': the input '\(name)' is no array")
                }
                features[name] = MLFeatureValue(multiArray: converted(try find(name, values), to: type))
            }
            let answer = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
            for name in answer.featureNames {
                if let array = answer.featureValue(for: name)?.multiArrayValue { values[name] = array }
            }
        }
        var outputs: [String: Tensor] = [:]
        for spec in graph.outputs {
            guard let array = values[featureName(spec.name)] else {
                throw LiveMomentsError("stage '\(stage)': no package makes '\(spec.name)'")
            }
            outputs[spec.name] = tensor(array)
        }
        return outputs
    }

    private func models(_ stage: String, _ graph: Manifest.Graph) throws -> [MLModel] {
        let key = "\(stage) \(graph.size)"
        if let found = loaded[key] { return found }
        let ending = ".mlpackage/Manifest.json"
        let packages = ([graph.path] + graph.weights).filter { $0.hasSuffix(ending) }
        let models = try packages.map { name in
            let package = bundle.folder.appendingPathComponent(name).deletingLastPathComponent()
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            // A package of several sizes has a function for each (coreml/names.py: function_name)
            if package.lastPathComponent.hasPrefix("all") { configuration.functionName = "size_\(graph.size)" }
            return try MLModel(contentsOf: MLModel.compileModel(at: package), configuration: configuration)
        }
        loaded[key] = models
        return models
    }

    /// A value by its name, or the part of one that a chunk of blocks takes, e.g. `motion_bias_0_6`
    /// (coreml/names.py: parse_slice).
    private func find(_ name: String, _ values: [String: MLMultiArray]) throws -> MLMultiArray {
        if let found = values[name] { return found }
        let parts = name.split(separator: "_")
        guard parts.count > 2, let start = Int(parts[parts.count - 2]), let stop = Int(parts[parts.count - 1]),
            let whole = values[parts.dropLast(2).joined(separator: "_")]
        else { throw LiveMomentsError("nothing makes '\(name)'") }
        let all = tensor(whole)
        let each = all.values.count / all.shape[0]
        return multiArray(
            Tensor(
                shape: [stop - start] + all.shape.dropFirst(),
                values: Array(all.values[(start * each)..<(stop * each)])))
    }
}

/// A tensor's name as Core ML allows it: `reference_k.0` is `reference_k_0` (coreml/names.py: feature_name).
private func featureName(_ name: String) -> String {
    String(name.map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "_" })
}

private func multiArray(_ tensor: Tensor) -> MLMultiArray {
    MLMultiArray(MLShapedArray<Float>(scalars: tensor.values, shape: tensor.shape))
}

private func tensor(_ array: MLMultiArray) -> Tensor {
    let shaped = MLShapedArray<Float>(converting: array)
    return Tensor(shape: shaped.shape, values: shaped.scalars)
}

private func converted(_ array: MLMultiArray, to type: MLMultiArrayDataType) -> MLMultiArray {
    guard array.dataType != type else { return array }
    return MLMultiArray(concatenating: [array], axis: 0, dataType: type)
}
#endif
