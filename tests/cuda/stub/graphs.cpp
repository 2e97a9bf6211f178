// CUDA graphs: a capture counts what would have been launched, and a replay is one launch.
#include <cuda_runtime_api.h>

#include "device.hpp"

using namespace stub;

namespace {

struct Graph {
    size_t nodes = 0;
};

Graph* captured = nullptr;
cudaStream_t capturing = nullptr;
unsigned long long captures = 0;

Graph* graph_of(const void* handle) { return static_cast<Graph*>(const_cast<void*>(handle)); }

} // namespace

namespace stub {

bool note_in_graph() {
    if (!captured) return false;
    ++captured->nodes;
    return true;
}

} // namespace stub

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    LOCKED;
    if (captured) return cudaErrorIllegalState;
    captured = new Graph;
    capturing = stream;
    ++captures;
    return cudaSuccess;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    LOCKED;
    *graph = reinterpret_cast<cudaGraph_t>(captured);
    captured = nullptr;
    return cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    LOCKED;
    *status = captured && stream == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                         size_t* dependencies) {
    LOCKED;
    cudaStreamIsCapturing(stream, status);
    bool active = *status == cudaStreamCaptureStatusActive;
    if (id) *id = active ? captures : 0;
    if (graph) *graph = active ? reinterpret_cast<cudaGraph_t>(captured) : nullptr;
    if (dependencies) *dependencies = 0;
    return cudaSuccess;
}

API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
    LOCKED;
    *count = graph_of(graph)->nodes;
    return cudaSuccess;
}

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    LOCKED;
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(graph)));
    return cudaSuccess;
}

API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
    launch(stream);
    LOCKED;
    count("launches: graphs");
    return cudaSuccess;
}

API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    LOCKED;
    delete graph_of(graph);
    return cudaSuccess;
}

API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    LOCKED;
    delete graph_of(executable);
    return cudaSuccess;
}
