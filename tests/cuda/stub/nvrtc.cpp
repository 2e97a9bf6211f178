// NVRTC, by which PyTorch compiles some elementwise kernels when they are first used: every program compiles to nothing.
#include <cstddef>

#define API extern "C" __attribute__((visibility("default")))

API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return 0;
}

API int nvrtcCreateProgram(void** program, ...) {
    static char object;
    *program = &object;
    return 0;
}

API int nvrtcDestroyProgram(void**) { return 0; }
API int nvrtcAddNameExpression(void*, const char*) { return 0; }
API int nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
API const char* nvrtcGetErrorString(int) { return "the stub's NVRTC"; }

API int nvrtcGetLoweredName(void*, const char*, const char** lowered) {
    *lowered = "kernel";
    return 0;
}

#define ONE_ZERO_BYTE(size_function, function)                                                                         \
    API int size_function(void*, size_t* size) {                                                                       \
        *size = 1;                                                                                                     \
        return 0;                                                                                                      \
    }                                                                                                                  \
    API int function(void*, char* bytes) {                                                                             \
        *bytes = 0;                                                                                                    \
        return 0;                                                                                                      \
    }

ONE_ZERO_BYTE(nvrtcGetCUBINSize, nvrtcGetCUBIN)
ONE_ZERO_BYTE(nvrtcGetPTXSize, nvrtcGetPTX)
ONE_ZERO_BYTE(nvrtcGetProgramLogSize, nvrtcGetProgramLog)
