// Classifies one frame with an engine of this bundle: TensorRT's C++ API, 8.5 to 11, and the CUDA runtime.
//
//   g++ -std=c++17 -O2 classify.cpp -o classify -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./classify FRAME [ENGINE]
//
// FRAME holds height x width x channels bytes, as a camera gives them (red, green, blue; or gray), resized and
// cropped as "preprocess" in work.json says. ENGINE is int8 (the default) or fp16; edgetune.pyz has built it. Run it
// in the bundle's folder. It is an example: take what you need.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 5)
#error "TensorRT 8.5 or later is needed: before it, tensors were not addressed by name"
#endif

// TensorRT 10 counts in 64 bits.
#if NV_TENSORRT_MAJOR >= 10
using Size = std::int64_t;
#else
using Size = std::int32_t;
#endif

namespace {

[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr, "error: %s\n", why.c_str());
    std::exit(1);
}

void check(cudaError_t code, const char* what) {
    if (code != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(code));
}

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::size_t count(const nvinfer1::Dims& shape) {
    Size total = 1;
    for (int i = 0; i < shape.nbDims; ++i) total *= shape.d[i];
    if (total <= 0) fail("the engine's shapes are not fixed");
    return static_cast<std::size_t>(total);
}

void append(std::string& text, unsigned long point) {
    if (point < 0x80) {
        text += static_cast<char>(point);
    } else if (point < 0x800) {
        text += {static_cast<char>(0xC0 | (point >> 6)), static_cast<char>(0x80 | (point & 63))};
    } else {
        text += {static_cast<char>(0xE0 | (point >> 12)), static_cast<char>(0x80 | ((point >> 6) & 63)),
                 static_cast<char>(0x80 | (point & 63))};
    }
}

// The names in "classes": of all of JSON, one list of strings.
std::vector<std::string> classes(const std::string& json) {
    const std::string key = "\"classes\": [";
    std::size_t at = json.find(key);
    if (at == std::string::npos) fail("work.json names no classes");
    std::vector<std::string> names;
    bool inside = false;
    for (at += key.size(); at < json.size() && (inside || json[at] != ']'); ++at) {
        const char c = json[at];
        if (c == '"') {
            inside = !inside;
            if (inside) names.emplace_back();
        } else if (inside && c != '\\') {
            names.back() += c;
        } else if (inside && ++at < json.size()) {
            const std::string plain = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
            const std::size_t which = plain.find(json[at]);
            if (which != std::string::npos) {
                names.back() += meant[which];
            } else {  // u and four digits; edgetune writes only control characters so
                append(names.back(), std::strtoul(json.substr(at + 1, 4).c_str(), nullptr, 16));
                at += 4;
            }
        }
    }
    return names;
}

// The DLA that engines are built for; -1: none.
int dla_core(const std::string& json) {
    const std::string key = "\"dla_core\": ";
    const std::size_t at = json.find(key);
    const char first = at == std::string::npos ? 'n' : json[at + key.size()];
    return first >= '0' && first <= '9' ? first - '0' : -1;
}

// uint8 [H, W, C] becomes float32 [C, H, W]; the table holds what each of 256 values becomes, by channel.
std::string normalised(const std::string& frame, const std::string& table, std::size_t channels) {
    if (table.size() != channels * 256 * sizeof(float)) fail("table.bin does not fit the engine");
    const float* values = reinterpret_cast<const float*>(table.data());
    std::vector<float> planes;
    planes.reserve(frame.size());
    for (std::size_t c = 0; c < channels; ++c)
        for (std::size_t i = c; i < frame.size(); i += channels)
            planes.push_back(values[256 * c + static_cast<unsigned char>(frame[i])]);
    return {reinterpret_cast<const char*>(planes.data()), planes.size() * sizeof(float)};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2 && argc != 3) fail("give a frame, and int8 or fp16");
    const std::string plan = "results/" + std::string(argc > 2 ? argv[2] : "int8") + ".plan";
    check(cudaFree(nullptr), "CUDA");  // fails where there is no driver, before TensorRT is touched

    Logger logger;
    const std::string content = read(plan);
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime) fail("TensorRT did not start");
    const std::string work = read("work.json");
    if (dla_core(work) >= 0) runtime->setDLACore(dla_core(work));
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(
        runtime->deserializeCudaEngine(content.data(), content.size()));
    if (!engine) fail(plan + ": TensorRT does not take it; build it here with edgetune.pyz");
    const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) fail(plan + ": memory is short");

    std::string input, output;
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* name = engine->getIOTensorName(i);
        const bool in = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        (in ? input : output) = name;
    }
    const nvinfer1::Dims shape = engine->getTensorShape(input.c_str());
    std::string frame = read(argv[1]);
    if (frame.size() != count(shape)) fail(std::string(argv[1]) + ": not as many bytes as the engine takes values");
    if (engine->getTensorDataType(input.c_str()) == nvinfer1::DataType::kFLOAT)
        frame = normalised(frame, read("table.bin"), static_cast<std::size_t>(shape.d[1]));
    std::vector<float> logits(count(engine->getTensorShape(output.c_str())));
    const std::size_t bytes = logits.size() * sizeof(float);

    void *in = nullptr, *out = nullptr;
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    check(cudaMalloc(&in, frame.size()), "cudaMalloc");
    check(cudaMalloc(&out, bytes), "cudaMalloc");
    context->setTensorAddress(input.c_str(), in);
    context->setTensorAddress(output.c_str(), out);
    check(cudaMemcpyAsync(in, frame.data(), frame.size(), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    if (!context->enqueueV3(stream)) fail("the engine could not be run");
    check(cudaMemcpyAsync(logits.data(), out, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

    const std::vector<std::string> names = classes(work);
    if (names.size() != logits.size()) fail("work.json and the engine do not belong together");
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (float value : logits) sum += std::exp(static_cast<double>(value) - logits[order[0]]);
    for (std::size_t i = 0; i < std::min<std::size_t>(order.size(), 5); ++i) {
        const double share = std::exp(static_cast<double>(logits[order[i]]) - logits[order[0]]) / sum;
        std::printf("%5.1f%%  %s\n", 100 * share, names[order[i]].c_str());
    }
    check(cudaFree(in), "cudaFree");
    check(cudaFree(out), "cudaFree");
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return 0;
}
