// cuBLAS and cuDNN: objects are empty, questions are answered so that PyTorch goes on, and what would compute is counted
// as one launch. The functions that need no more than that are in the generated table at the end.
#include <cstdlib>
#include <cstring>

#include "device.hpp"

using namespace stub;

namespace {

constexpr size_t kObjectBytes = 4096;

int make_object(void** object) {
    *object = calloc(1, kObjectBytes);
    return 0;
}

// The streams that handles were given are not kept: for counting and for order among copies the default one will do.
int compute(const char* function) {
    launch(nullptr);
    LOCKED;
    count(std::string("library ") + function);
    return 0;
}

int not_implemented(const char* function) {
    LOCKED;
    count(std::string("missing ") + function);
    return 801; // cudaErrorNotSupported, and no success of any other library
}

// cudnnConvolution…AlgoPerf_t
struct Performance {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math_type, reserved[3];
};

int one_algorithm(int* returned, Performance* performance) {
    *returned = 1;
    *performance = {1, 0, 1.0f, 0, 1, 1, {}};
    return 0;
}

// Attributes of cuDNN's backend, by their numbers in cudnn_graph.h.
constexpr int kHeuristicResults = 202, kEnumeratedEngines = 300;
constexpr int kKnobs[] = {301, 302, 1302, 1303, 1305};
constexpr int kBehaviourNotes = 802;
constexpr int kInt64 = 3;

} // namespace

API int cublasCreate_v2(void** handle) { return make_object(handle); }

API int cublasGetMathMode(void*, int* mode) {
    *mode = 0;
    return 0;
}

API int cublasGetPointerMode_v2(void*, int* mode) {
    *mode = 0;
    return 0;
}

API size_t cublasLtGetVersion() { return 130101; }
API int cublasLtMatmulDescCreate(void** description, ...) { return make_object(description); }
API int cublasLtMatrixLayoutCreate(void** layout, ...) { return make_object(layout); }
API int cublasLtMatmulPreferenceCreate(void** preference, ...) { return make_object(preference); }

API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, char* results, int* found) {
    memset(results, 0, 96); // one cublasLtMatmulHeuristicResult_t
    *found = 1;
    return 0;
}

API size_t cudnnGetVersion() { return 92400; }
API size_t cudnnGetCudartVersion() { return 13000; }
API const char* cudnnGetErrorString(int) { return "the stub's cuDNN"; }

API int cudnnGetProperty(int which, int* value) {
    *value = which == 0 ? 9 : which == 1 ? 24 : 0;
    return 0;
}

API int cudnnCreate(void** handle) { return make_object(handle); }

API int cudnnGetStream(void*, void** stream) {
    *stream = nullptr;
    return 0;
}

#define NO_WORKSPACE(function, ...)                                                                                    \
    API int function(__VA_ARGS__, size_t* size) {                                                                      \
        *size = 0;                                                                                                     \
        return 0;                                                                                                      \
    }

NO_WORKSPACE(cudnnGetConvolutionForwardWorkspaceSize, void*, void*, void*, void*, void*, int)
NO_WORKSPACE(cudnnGetConvolutionBackwardDataWorkspaceSize, void*, void*, void*, void*, void*, int)
NO_WORKSPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize, void*, void*, void*, void*, void*, int)
NO_WORKSPACE(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize, void*, int, int, void*, void*, void*, void*,
             void*)
NO_WORKSPACE(cudnnGetBatchNormalizationTrainingExReserveSpaceSize, void*, int, int, void*, void*)
NO_WORKSPACE(cudnnGetBatchNormalizationBackwardExWorkspaceSize, void*, int, int, void*, void*, void*, void*, void*,
             void*, void*)

// A search runs every algorithm and waits for it.
#define SEARCH(function)                                                                                               \
    API int function(void*, void*, void*, void*, void*, void*, void*, void*, int, int* returned,                       \
                     Performance* performance, void*, size_t) {                                                        \
        LOCKED;                                                                                                        \
        count("cuDNN searches");                                                                                       \
        return one_algorithm(returned, performance);                                                                   \
    }

SEARCH(cudnnFindConvolutionForwardAlgorithmEx)
SEARCH(cudnnFindConvolutionBackwardDataAlgorithmEx)
SEARCH(cudnnFindConvolutionBackwardFilterAlgorithmEx)

#define HEURISTIC(function)                                                                                            \
    API int function(void*, void*, void*, void*, void*, int, int* returned, Performance* performance) {                \
        return one_algorithm(returned, performance);                                                                   \
    }

HEURISTIC(cudnnGetConvolutionForwardAlgorithm_v7)
HEURISTIC(cudnnGetConvolutionBackwardDataAlgorithm_v7)
HEURISTIC(cudnnGetConvolutionBackwardFilterAlgorithm_v7)

API int cudnnBackendCreateDescriptor(int, void** descriptor) { return make_object(descriptor); }

API int cudnnBackendDestroyDescriptor(void* descriptor) {
    free(descriptor);
    return 0;
}

API int cudnnBackendGetAttribute(void*, int name, int type, int64_t wanted, int64_t* returned, void* values) {
    int64_t elements = 0;
    bool is_knob = false;
    for (int knob : kKnobs) is_knob = is_knob || name == knob;
    if (name == kHeuristicResults || name == kEnumeratedEngines) {
        elements = 1;
    } else if (!is_knob && type == kInt64) {
        elements = 1;
        if (values && wanted > 0) *static_cast<int64_t*>(values) = name == kBehaviourNotes ? 1 : 0;
    }
    if (returned) *returned = elements;
    return 0;
}

API int cudnnBackendExecute(void*, void*, void*) { return compute("cudnnBackendExecute"); }

// Made by stub_build.py from what PyTorch imports: OBJECT(function), SETTING(function), COMPUTE(function), MISSING(function).
#define OBJECT(function)                                                                                               \
    API int function(void** object, ...) { return make_object(object); }
#define SETTING(function)                                                                                              \
    API int function(...) { return 0; }
#define COMPUTE(function)                                                                                              \
    API int function(...) { return compute(#function); }
#define MISSING(function)                                                                                              \
    API int function(...) { return not_implemented(#function); }
#include "imports.inc"
