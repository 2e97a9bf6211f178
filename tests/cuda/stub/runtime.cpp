// The CUDA runtime without a GPU: device memory is host memory, copies and fills are real, kernels do nothing.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "device.hpp"

using namespace stub;

namespace {

constexpr size_t kPage = 4096;

struct Range {
    size_t size;
    int device;
};

using Ranges = std::map<const char*, Range>;

Ranges& device_memory() {
    static auto* ranges = new Ranges;
    return *ranges;
}

Ranges& pinned_memory() {
    static auto* ranges = new Ranges;
    return *ranges;
}

size_t used[64];

size_t& capacity() {
    static size_t bytes = getenv("CUDA_STUB_BYTES") ? strtoull(getenv("CUDA_STUB_BYTES"), nullptr, 10) : 80ull << 30;
    return bytes;
}

int device_count() {
    static int count = getenv("CUDA_STUB_DEVICES") ? atoi(getenv("CUDA_STUB_DEVICES")) : 1;
    return count;
}

thread_local int current = 0;

const Range* find(const Ranges& ranges, const void* pointer) {
    auto next = ranges.upper_bound(static_cast<const char*>(pointer));
    if (next == ranges.begin()) return nullptr;
    const auto& [start, range] = *std::prev(next);
    return static_cast<const char*>(pointer) < start + range.size ? &range : nullptr;
}

size_t whole_pages(size_t size) { return (size + kPage - 1) / kPage * kPage; }

// Pages that nobody touches cost nothing: a network's activations fit any machine.
void* map(size_t size) {
    void* start = mmap(nullptr, whole_pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    return start == MAP_FAILED ? nullptr : start;
}

void unmap(Ranges& ranges, void* start) {
    auto found = ranges.find(static_cast<char*>(start));
    if (found == ranges.end()) return;
    munmap(start, whole_pages(found->second.size));
    ranges.erase(found);
}

cudaError_t wait_for_stream(cudaStream_t handle) {
    Stream* stream;
    {
        LOCKED;
        stream = stream_of(handle);
    }
    wait_for([stream] { return stream->drain(); });
    return cudaSuccess;
}

cudaError_t copy(void* target, const void* source, size_t size, cudaStream_t handle) {
    if (size == 0) return cudaSuccess;
    bool host_waits = false;
    {
        LOCKED;
        Place from = place_of(source), to = place_of(target);
        std::shared_ptr<std::vector<char>> staged;
        if (from != Place::device && to == Place::device) {
            count(from == Place::pinned ? "copy: pinned to device" : "copy: pageable to device");
            // The driver stages pageable memory before it returns.
            if (from == Place::pageable) {
                auto* bytes = static_cast<const char*>(source);
                staged = std::make_shared<std::vector<char>>(bytes, bytes + size);
            }
        } else if (from == Place::device && to != Place::device) {
            count(to == Place::pinned ? "copy: device to pinned" : "copy: device to pageable");
            host_waits = to == Place::pageable;
        } else {
            count("copy: within the device");
        }
        stream_of(handle)->push([=] {
            memcpy(target, staged ? staged->data() : source, size);
            return true;
        });
    }
    return host_waits ? wait_for_stream(handle) : cudaSuccess;
}

std::unordered_map<const void*, std::string>& kernel_names() {
    static auto* names = new std::unordered_map<const void*, std::string>;
    return *names;
}

bool names_are_wanted() {
    static bool wanted = getenv("CUDA_STUB_KERNEL_NAMES") != nullptr;
    return wanted;
}

using EventHandle = std::shared_ptr<Event>;

EventHandle& event_of(cudaEvent_t handle) { return *reinterpret_cast<EventHandle*>(handle); }

} // namespace

namespace stub {

Place place_of(const void* pointer) {
    if (find(device_memory(), pointer)) return Place::device;
    return find(pinned_memory(), pointer) ? Place::pinned : Place::pageable;
}

int device_of(const void* pointer) {
    const Range* range = find(device_memory(), pointer);
    return range ? range->device : -1;
}

int current_device() { return current; }

void launch(const void* stream) {
    LOCKED;
    if (note_in_graph()) return;
    count("launches");
    stream_of(stream)->push([] { return true; });
}

} // namespace stub

// Called by the stub's driver, which is a library of its own.
API void cuda_stub_launch(const void* stream) {
    launch(stream);
    LOCKED;
    count("launches: Triton");
}

API void cuda_stub_set_memory(size_t bytes) {
    LOCKED;
    capacity() = bytes;
}

// ---- memory

API cudaError_t cudaMalloc(void** pointer, size_t size) {
    LOCKED;
    count("cudaMalloc");
    if (used[current] + size > capacity()) return cudaErrorMemoryAllocation;
    *pointer = map(size);
    if (!*pointer) return cudaErrorMemoryAllocation;
    device_memory()[static_cast<char*>(*pointer)] = {size, current};
    used[current] += size;
    return cudaSuccess;
}

API cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    wait_for(drain_all);
    LOCKED;
    count("wait: cudaFree");
    if (const Range* range = find(device_memory(), pointer)) used[range->device] -= range->size;
    unmap(device_memory(), pointer);
    return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
    LOCKED;
    count("cudaHostAlloc");
    *pointer = map(size);
    if (!*pointer) return cudaErrorMemoryAllocation;
    pinned_memory()[static_cast<char*>(*pointer)] = {size, -1};
    return cudaSuccess;
}

API cudaError_t cudaFreeHost(void* pointer) {
    wait_for(drain_all);
    LOCKED;
    unmap(pinned_memory(), pointer);
    return cudaSuccess;
}

API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    LOCKED;
    *total = capacity();
    *free = capacity() - std::min(capacity(), used[current]);
    return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    LOCKED;
    memset(attributes, 0, sizeof *attributes);
    Place place = place_of(pointer);
    attributes->type = place == Place::device   ? cudaMemoryTypeDevice
                       : place == Place::pinned ? cudaMemoryTypeHost
                                                : cudaMemoryTypeUnregistered;
    attributes->device = place == Place::device ? device_of(pointer) : current;
    attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

API cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t size, cudaMemcpyKind, cudaStream_t stream) {
    return copy(target, source, size, stream);
}

API cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t size, cudaStream_t stream) {
    return copy(target, source, size, stream);
}

API cudaError_t cudaMemcpy(void* target, const void* source, size_t size, cudaMemcpyKind) {
    copy(target, source, size, nullptr);
    {
        LOCKED;
        count("wait: cudaMemcpy");
    }
    return wait_for_stream(nullptr);
}

API cudaError_t cudaMemsetAsync(void* target, int value, size_t size, cudaStream_t stream) {
    LOCKED;
    count("fills");
    stream_of(stream)->push([=] {
        memset(target, value, size);
        return true;
    });
    return cudaSuccess;
}

API cudaError_t cudaMemset(void* target, int value, size_t size) {
    cudaMemsetAsync(target, value, size, nullptr);
    return wait_for_stream(nullptr);
}

// ---- streams and events

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    LOCKED;
    *stream = reinterpret_cast<cudaStream_t>(new char[16]); // an address of its own; PyTorch keeps its streams for ever
    stream_of(*stream);
    return cudaSuccess;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return wait_for_stream(stream); }

API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    {
        LOCKED;
        count("wait: cudaStreamSynchronize");
    }
    return wait_for_stream(stream);
}

API cudaError_t cudaDeviceSynchronize() {
    {
        LOCKED;
        count("wait: cudaDeviceSynchronize");
    }
    wait_for(drain_all);
    return cudaSuccess;
}

API cudaError_t cudaStreamQuery(cudaStream_t handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    let_work();
    if (!stream->idle() && out_of_patience(stream->queries)) stream->advance();
    return stream->idle() ? cudaSuccess : cudaErrorNotReady;
}

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
    LOCKED;
    EventHandle event = event_of(handle);
    uint64_t recording = event->recorded();
    if (!event->reached(recording)) stream_of(stream)->push([=] { return event->pursue(recording); });
    return cudaSuccess;
}

API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}

API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    LOCKED;
    stream_of(stream)->push([=] {
        function(data);
        return true;
    });
    return cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = reinterpret_cast<cudaEvent_t>(new EventHandle(std::make_shared<Event>()));
    return cudaSuccess;
}

API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

API cudaError_t cudaEventDestroy(cudaEvent_t event) {
    LOCKED;
    delete &event_of(event); // queued operations hold the event itself
    return cudaSuccess;
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned) {
    LOCKED;
    EventHandle event = event_of(handle);
    event->record(event, stream_of(stream));
    return cudaSuccess;
}

API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

API cudaError_t cudaEventQuery(cudaEvent_t handle) {
    LOCKED;
    EventHandle event = event_of(handle);
    uint64_t recording = event->recorded();
    let_work();
    if (!event->reached(recording) && out_of_patience(event->queries)) event->pursue(recording);
    return event->reached(recording) ? cudaSuccess : cudaErrorNotReady;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    EventHandle event;
    uint64_t recording;
    {
        LOCKED;
        event = event_of(handle);
        recording = event->recorded();
        count(event->reached(recording) ? "cudaEventSynchronize: done before" : "wait: cudaEventSynchronize");
    }
    wait_for([=] { return event->pursue(recording); });
    return cudaSuccess;
}

API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 1;
    return cudaSuccess;
}

// ---- the device

API cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_count();
    return cudaSuccess;
}

API cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}

API cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
    current = device;
    return cudaSuccess;
}

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    LOCKED;
    memset(p, 0, sizeof *p);
    strcpy(p->name, "CUDA stub");
    p->totalGlobalMem = capacity();
    // An A100's figures, by which PyTorch chooses kernels and launch sizes.
    p->major = 8;
    p->minor = 0;
    p->multiProcessorCount = 108;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = 163 << 10;
    p->sharedMemPerMultiprocessor = 164 << 10;
    p->l2CacheSize = 40 << 20;
    p->memoryBusWidth = 5120;
    p->unifiedAddressing = 1;
    const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
    std::copy_n(threads, 3, p->maxThreadsDim);
    std::copy_n(grid, 3, p->maxGridSize);
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    const std::map<cudaDeviceAttr, int> values = {
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrMaxSharedMemoryPerBlock, static_cast<int>(p.sharedMemPerBlock)},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(p.sharedMemPerBlockOptin)},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, p.maxGridSize[2]},
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
    snprintf(id, size, "0000:%02x:00.0", device);
    return cudaSuccess;
}

API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}

API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

API cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

API cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

// ---- kernels

namespace {

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

thread_local std::vector<Configuration> configurations;

cudaError_t launch_kernel(const void* function, cudaStream_t stream) {
    launch(stream);
    if (names_are_wanted()) {
        LOCKED;
        count("kernel " + kernel_names()[function]);
    }
    return cudaSuccess;
}

int unknown_driver_function() { return 999; } // CUDA_ERROR_UNKNOWN

} // namespace

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}

API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    if (configurations.empty()) return cudaErrorUnknown;
    Configuration last = configurations.back();
    configurations.pop_back();
    *grid = last.grid;
    *block = last.block;
    *shared = last.shared;
    *static_cast<cudaStream_t*>(stream) = last.stream;
    return cudaSuccess;
}

API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch_kernel(function, stream);
}

API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch_kernel(kernel, stream);
}

API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch_kernel(function, stream);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* function, void**) {
    return launch_kernel(function, configuration->stream);
}

API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}

API void** __cudaRegisterFatBinary(void*) {
    static void* handle[4];
    return handle;
}

API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 0; }
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                dim3*, int*) {
    if (!names_are_wanted()) return;
    LOCKED;
    kernel_names()[function] = name;
}

API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 80;
    return cudaSuccess;
}

API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

API cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
    static char symbol[1 << 16];
    *pointer = symbol;
    return cudaSuccess;
}

API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

API cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
    *function = reinterpret_cast<void*>(unknown_driver_function);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
