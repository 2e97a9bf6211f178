// NCCL between processes of one machine, through shared memory. As on a GPU a collective operation is work in a stream:
// the host goes on, and only who waits for the stream waits for the other ranks.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "device.hpp"

using namespace stub;

namespace {

constexpr size_t kSlotBytes = 4 << 20;
constexpr int kMostRanks = 16;
constexpr size_t kHeadBytes = 4096;

enum DataType { int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, bfloat16 };
enum Reduction { sum, product, maximum, minimum, average };
enum Status { success = 0, internal_error = 3, invalid_argument = 4 };

struct Id {
    char text[128];
};

// Every rank counts the rounds that it has written and read; a round is one slot's worth of one operation.
struct Head {
    std::atomic<int> joined;
    std::atomic<uint64_t> written[kMostRanks], read[kMostRanks];
};

struct Communicator {
    int rank, size;
    Head* head;
    char* slots;
    uint64_t round = 0;
    bool aborted = false;

    char* slot(int of) { return slots + of * kSlotBytes; }

    bool all_reached(const std::atomic<uint64_t>* counts, uint64_t least) const {
        return std::all_of(counts, counts + size, [least](auto& count) { return count.load() >= least; });
    }
};

size_t width(int type) {
    const size_t widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return widths[type];
}

float bfloat16_to_float(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

uint16_t float_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T> T combine(T a, T b, int reduction) {
    if (reduction == maximum) return std::max(a, b);
    if (reduction == minimum) return std::min(a, b);
    return reduction == product ? T(a * b) : T(a + b);
}

template <class T> void reduce_as(char* into, const char* other, size_t bytes, int reduction) {
    auto* a = reinterpret_cast<T*>(into);
    auto* b = reinterpret_cast<const T*>(other);
    for (size_t i = 0; i < bytes / sizeof(T); i++) a[i] = combine(a[i], b[i], reduction);
}

void reduce_bfloat16(char* into, const char* other, size_t bytes, int reduction) {
    auto* a = reinterpret_cast<uint16_t*>(into);
    auto* b = reinterpret_cast<const uint16_t*>(other);
    for (size_t i = 0; i < bytes / 2; i++)
        a[i] = float_to_bfloat16(combine(bfloat16_to_float(a[i]), bfloat16_to_float(b[i]), reduction));
}

void reduce(char* into, const char* other, size_t bytes, int type, int reduction) {
    switch (type) {
    case int8: return reduce_as<int8_t>(into, other, bytes, reduction);
    case uint8: return reduce_as<uint8_t>(into, other, bytes, reduction);
    case int32: return reduce_as<int32_t>(into, other, bytes, reduction);
    case uint32: return reduce_as<uint32_t>(into, other, bytes, reduction);
    case int64: return reduce_as<int64_t>(into, other, bytes, reduction);
    case uint64: return reduce_as<uint64_t>(into, other, bytes, reduction);
    case float16: return reduce_as<_Float16>(into, other, bytes, reduction);
    case float32: return reduce_as<float>(into, other, bytes, reduction);
    case float64: return reduce_as<double>(into, other, bytes, reduction);
    default: return reduce_bfloat16(into, other, bytes, reduction);
    }
}

void divide(char* values, size_t bytes, int type, int by) {
    if (type == float32)
        for (size_t i = 0; i < bytes / 4; i++) reinterpret_cast<float*>(values)[i] /= by;
    if (type == float64)
        for (size_t i = 0; i < bytes / 8; i++) reinterpret_cast<double*>(values)[i] /= by;
}

// Sends `bytes` round by round. `write(offset, count)` fills this rank's slot, `read(offset, count)` takes from all.
template <class Write, class Read>
Operation exchange(Communicator* c, size_t bytes, Write write, Read read) {
    return [c, bytes, write, read, offset = size_t(0), wrote = false]() mutable {
        while (offset < bytes && !c->aborted) {
            size_t count = std::min(kSlotBytes, bytes - offset);
            if (!wrote) {
                if (!c->all_reached(c->head->read, c->round)) return false;
                write(offset, count);
                c->head->written[c->rank] = c->round + 1;
                wrote = true;
            }
            if (!c->all_reached(c->head->written, c->round + 1)) return false;
            read(offset, count);
            c->head->read[c->rank] = ++c->round;
            offset += count;
            wrote = false;
        }
        return true;
    };
}

// NCCL refuses host memory by a crash in a kernel.
bool on_device(const char* function, const void* pointer) {
    if (!pointer || place_of(pointer) == Place::device) return true;
    fprintf(stderr, "CUDA stub: %s of memory that is not the device's\n", function);
    return false;
}

} // namespace

API int ncclGetVersion(int* version) {
    *version = 23007;
    return success;
}

API const char* ncclGetErrorString(int) { return "the stub's NCCL"; }
API const char* ncclGetLastError(void*) { return "the stub's NCCL"; }

API int ncclGetUniqueId(Id* id) {
    std::random_device device;
    memset(id, 0, sizeof *id);
    snprintf(id->text, sizeof id->text, "/cuda_stub_%08x%08x%08x", device(), device(), device());
    return success;
}

API int ncclCommInitRankConfig(Communicator** made, int size, Id id, int rank, void*) {
    if (size > kMostRanks) return invalid_argument;
    size_t bytes = kHeadBytes + size * kSlotBytes;
    int file = shm_open(id.text, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, bytes)) return internal_error;
    void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (start == MAP_FAILED) return internal_error;
    auto* c = new Communicator{rank, size, static_cast<Head*>(start), static_cast<char*>(start) + kHeadBytes};
    c->head->joined++;
    while (c->head->joined < size) usleep(100);
    if (rank == 0) shm_unlink(id.text);
    *made = c;
    return success;
}

API int ncclCommInitRank(Communicator** made, int size, Id id, int rank) {
    return ncclCommInitRankConfig(made, size, id, rank, nullptr);
}

API int ncclCommAbort(Communicator* c) {
    LOCKED;
    count("ncclCommAbort");
    c->aborted = true; // the others go on waiting
    return success;
}

API int ncclCommDestroy(Communicator*) { return success; }
API int ncclCommFinalize(Communicator*) { return success; }

API int ncclCommGetAsyncError(Communicator*, int* error) {
    *error = success;
    return success;
}

API int ncclCommCount(Communicator* c, int* size) {
    *size = c->size;
    return success;
}

API int ncclCommUserRank(Communicator* c, int* rank) {
    *rank = c->rank;
    return success;
}

API int ncclGroupStart() { return success; }
API int ncclGroupEnd() { return success; }

API int ncclAllReduce(const char* source, char* target, size_t elements, int type, int reduction, Communicator* c,
                      cudaStream_t stream) {
    LOCKED;
    count("ncclAllReduce");
    if (!on_device("ncclAllReduce", source) || !on_device("ncclAllReduce", target)) return invalid_argument;
    stream_of(stream)->push(exchange(
        c, elements * width(type), [=](size_t offset, size_t n) { memcpy(c->slot(c->rank), source + offset, n); },
        [=](size_t offset, size_t n) {
            std::vector<char> total(c->slot(0), c->slot(0) + n);
            for (int rank = 1; rank < c->size; rank++) reduce(total.data(), c->slot(rank), n, type, reduction);
            if (reduction == average) divide(total.data(), n, type, c->size);
            memcpy(target + offset, total.data(), n);
        }));
    return success;
}

API int ncclBroadcast(const char* source, char* target, size_t elements, int type, int root, Communicator* c,
                      cudaStream_t stream) {
    LOCKED;
    count("ncclBroadcast");
    if (!on_device("ncclBroadcast", target)) return invalid_argument;
    stream_of(stream)->push(exchange(
        c, elements * width(type),
        [=](size_t offset, size_t n) {
            if (c->rank == root) memcpy(c->slot(root), source + offset, n);
        },
        [=](size_t offset, size_t n) { memcpy(target + offset, c->slot(root), n); }));
    return success;
}

API int ncclBcast(char* buffer, size_t elements, int type, int root, Communicator* c, cudaStream_t stream) {
    return ncclBroadcast(buffer, buffer, elements, type, root, c, stream);
}

API int ncclAllGather(const char* source, char* target, size_t elements, int type, Communicator* c,
                      cudaStream_t stream) {
    LOCKED;
    count("ncclAllGather");
    size_t bytes = elements * width(type);
    if (!on_device("ncclAllGather", source) || !on_device("ncclAllGather", target)) return invalid_argument;
    stream_of(stream)->push(exchange(
        c, bytes, [=](size_t offset, size_t n) { memcpy(c->slot(c->rank), source + offset, n); },
        [=](size_t offset, size_t n) {
            for (int rank = 0; rank < c->size; rank++) memcpy(target + rank * bytes + offset, c->slot(rank), n);
        }));
    return success;
}
