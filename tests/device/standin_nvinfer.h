// A stand-in for NvInfer.h and cuda_runtime_api.h of version MAJOR.MINOR, on host memory.
//
// Its plan is a line of text: type, shape of the input, number of outputs. Output k is the k-th of as many equal
// parts of the input, added up, less the mean over all parts.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#define NV_TENSORRT_MAJOR MAJOR
#define NV_TENSORRT_MINOR MINOR

enum cudaError_t { cudaSuccess = 0, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = struct CUstream_st*;
inline const char* cudaGetErrorString(cudaError_t code) { return code ? "no CUDA-capable device is detected" : "none"; }
inline cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return std::getenv("NO_GPU") ? cudaErrorNoDevice : cudaSuccess;
}
inline cudaError_t cudaMalloc(void** made, std::size_t size) { *made = std::malloc(size); return cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t*) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, size);
    return cudaSuccess;
}

namespace nvinfer1 {
#if MAJOR >= 10
class Dims { public: static constexpr int32_t MAX_DIMS{8}; int32_t nbDims; int64_t d[MAX_DIMS]; };
#else
class Dims { public: static constexpr int32_t MAX_DIMS{8}; int32_t nbDims; int32_t d[MAX_DIMS]; };
#endif
enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

class ICudaEngine;
class IExecutionContext {
public:
    explicit IExecutionContext(const ICudaEngine& engine) : engine(engine) {}
    bool setTensorAddress(char const* name, void* data) noexcept {
        (std::string(name) == "input" ? in : out) = data;
        return true;
    }
    bool enqueueV3(cudaStream_t) noexcept;
private:
    const ICudaEngine& engine;
    void *in = nullptr, *out = nullptr;
};

class ICudaEngine {
public:
    bool floats = false;
    Dims shape{}, result{};
    int32_t getNbIOTensors() const noexcept { return 2; }
    char const* getIOTensorName(int32_t index) const noexcept { return index ? "input" : "logits"; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept {
        return std::string(name) == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    Dims getTensorShape(char const* name) const noexcept { return std::string(name) == "input" ? shape : result; }
    DataType getTensorDataType(char const* name) const noexcept {
        return floats || std::string(name) != "input" ? DataType::kFLOAT : DataType::kUINT8;
    }
    IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext(*this); }
};

inline bool IExecutionContext::enqueueV3(cudaStream_t) noexcept {
    std::size_t size = 1, parts = engine.result.d[1];
    for (int i = 0; i < engine.shape.nbDims; ++i) size *= engine.shape.d[i];
    std::vector<double> sums(parts);
    double all = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const double value = engine.floats ? static_cast<float*>(in)[i] : static_cast<unsigned char*>(in)[i];
        sums[i * parts / size] += value;
        all += value / parts;
    }
    for (std::size_t k = 0; k < parts; ++k) static_cast<float*>(out)[k] = static_cast<float>(sums[k] - all);
    return true;
}

class IRuntime {
public:
    explicit IRuntime(ILogger& logger) : logger(logger) {}
    void setDLACore(std::int32_t core) noexcept { std::fprintf(stderr, "DLA core %d\n", core); }
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
        std::istringstream text(std::string(static_cast<char const*>(blob), size));
        std::string type;
        auto engine = new ICudaEngine;
        engine->shape.nbDims = 4;
        engine->result.nbDims = 2;
        engine->result.d[0] = 1;
        text >> type;
        for (int i = 0; i < 4; ++i) text >> engine->shape.d[i];
        if (text >> engine->result.d[1]) {
            engine->floats = type == "float32";
            return engine;
        }
        logger.log(ILogger::Severity::kERROR, "magicTag failed");
        delete engine;
        return nullptr;
    }
private:
    ILogger& logger;
};
inline IRuntime* createInferRuntime(ILogger& logger) noexcept { return new IRuntime(logger); }
}  // namespace nvinfer1
