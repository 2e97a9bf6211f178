// libcuda.so.1 for PyTorch's NVRTC stub and for Triton: modules are empty, a launch is handed to the stub's runtime.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#define API extern "C" __attribute__((visibility("default")))

extern "C" void cuda_stub_launch(const void* stream) __attribute__((weak));

namespace {

int launch(const void* stream) {
    if (cuda_stub_launch) cuda_stub_launch(stream);
    return 0;
}

int make_object(void** object) {
    *object = malloc(8);
    return 0;
}

int say(const char** text) {
    *text = "the stub's driver";
    return 0;
}

// The head of CUlaunchConfig
struct LaunchConfiguration {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
};

} // namespace

#define NOTHING(function)                                                                                              \
    API int function(...) { return 0; }

NOTHING(cuInit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxSynchronize)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuLinkAddData_v2)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate_v2)
NOTHING(cuMemFree_v2)
NOTHING(cuMemcpyHtoDAsync_v2)
NOTHING(cuMemsetD8Async)
NOTHING(cuModuleUnload)
NOTHING(cuPointerGetAttribute)
NOTHING(cuStreamSynchronize)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuTensorMapEncodeTiled)

API int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream,
                       void**, void**) {
    return launch(stream);
}

API int cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                  void* stream, void**) {
    return launch(stream);
}

API int cuLaunchKernelEx(const LaunchConfiguration* configuration, void*, void**, void**) {
    return launch(configuration->stream);
}

API int cuLaunchKernelExC(const LaunchConfiguration* configuration, void*, void**) {
    return launch(configuration->stream);
}

API int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}

API int cuDeviceGetCount(int* count) {
    const char* wanted = getenv("CUDA_STUB_DEVICES");
    *count = wanted ? atoi(wanted) : 1;
    return 0;
}

API int cuDeviceGet(int* device, int number) {
    *device = number;
    return 0;
}

API int cuCtxGetCurrent(void** context) {
    *context = reinterpret_cast<void*>(8);
    return 0;
}

API int cuCtxGetDevice(int* device) {
    *device = 0;
    return 0;
}

API int cuDevicePrimaryCtxRetain(void** context, int) { return cuCtxGetCurrent(context); }

API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
    *flags = 0;
    *active = 1;
    return 0;
}

// CUdevice_attribute by number, an A100's values as in runtime.cpp.
API int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break;       // threads per block
    case 8: *value = 48 << 10; break;   // shared memory per block
    case 10: *value = 32; break;        // warp size
    case 12: *value = 65536; break;     // registers per block
    case 13: *value = 1410000; break;   // clock, kHz
    case 16: *value = 108; break;       // multiprocessors
    case 36: *value = 1215000; break;   // memory clock, kHz
    case 37: *value = 5120; break;      // memory bus, bits
    case 38: *value = 40 << 20; break;  // L2 cache
    case 39: *value = 2048; break;      // threads per multiprocessor
    case 75: *value = 8; break;         // compute capability
    case 76: *value = 0; break;
    case 81: *value = 164 << 10; break; // shared memory per multiprocessor
    case 97: *value = 163 << 10; break; // shared memory per block, on request
    default: *value = 1;
    }
    return 0;
}

API int cuModuleLoad(void** module, ...) { return make_object(module); }
API int cuModuleLoadData(void** module, ...) { return make_object(module); }
API int cuModuleLoadDataEx(void** module, ...) { return make_object(module); }
API int cuModuleGetFunction(void** function, ...) { return make_object(function); }

API int cuFuncGetAttribute(int* value, int attribute, void*) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; // threads per block, registers
    return 0;
}

API int cuGetErrorString(int, const char** text) { return say(text); }
API int cuGetErrorName(int, const char** text) { return say(text); }

API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, ...) {
    *blocks = 2;
    return 0;
}

API int cuOccupancyMaxActiveClusters(int* clusters, ...) {
    *clusters = 16;
    return 0;
}
