// Streams, events and counters. Operations are real and are done in an order that the chosen schedule picks among those
// that streams and events permit.
#include "device.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace stub {

std::recursive_mutex mutex;

namespace {

constexpr size_t kLongestQueue = 20000;
constexpr unsigned kPatience = 64;
constexpr useconds_t kFirstPoll = 50, kLongestPoll = 5000; // microseconds

std::map<std::string, uint64_t>& counters() {
    static auto* all = new std::map<std::string, uint64_t>; // never destroyed: threads outlive static objects
    return *all;
}

std::map<std::pair<const void*, int>, std::unique_ptr<Stream>>& streams() {
    static auto* all = new std::map<std::pair<const void*, int>, std::unique_ptr<Stream>>;
    return *all;
}

Order order_of_environment() {
    const char* name = getenv("CUDA_STUB_ORDER");
    if (name && !strcmp(name, "early")) return Order::early;
    if (name && !strcmp(name, "random")) return Order::random;
    if (name && !strcmp(name, "overtaking")) return Order::overtaking;
    return Order::late;
}

Order& order() {
    static Order chosen = order_of_environment();
    return chosen;
}

// xorshift64: the same schedule in every run of a program of one thread.
uint64_t random_number() {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

} // namespace

void count(const std::string& what) { counters()[what]++; }

void Stream::push(Operation operation) {
    queue_.push_back(std::move(operation));
    if (order() == Order::early) drain();
    let_work();
    while (queue_.size() > kLongestQueue && advance()) {
    }
}

bool Stream::advance() {
    // An operation that waits for an event may lead back here.
    if (queue_.empty() || advancing_) return false;
    advancing_ = true;
    bool finished = queue_.front()();
    advancing_ = false;
    if (finished) {
        queue_.pop_front();
        queries = 0;
    }
    return finished;
}

bool Stream::drain() {
    while (advance()) {
    }
    return queue_.empty();
}

void Event::record(const std::shared_ptr<Event>& self, Stream* stream) {
    uint64_t recording = ++recorded_;
    queries = 0;
    streams_[recording] = stream;
    stream->push([self, recording] {
        if (self->done_ < recording) self->done_ = recording;
        self->streams_.erase(self->streams_.begin(), self->streams_.upper_bound(recording));
        return true;
    });
}

bool Event::pursue(uint64_t recording) {
    while (!reached(recording)) {
        auto found = streams_.find(recording);
        if (found == streams_.end() || !found->second->advance()) break;
    }
    return reached(recording);
}

Stream* stream_of(const void* handle) {
    // 1 and 2 are CUDA's names for the legacy and the per-thread default stream.
    bool is_default = reinterpret_cast<uintptr_t>(handle) <= 2;
    auto& stream = streams()[{is_default ? nullptr : handle, is_default ? current_device() : 0}];
    if (!stream) stream = std::make_unique<Stream>();
    return stream.get();
}

void let_work() {
    for (auto& [key, stream] : streams()) {
        if (order() == Order::early) stream->drain();
        if (order() == Order::random) {
            while (random_number() % 3 == 0 && stream->advance()) {
            }
        }
    }
}

bool out_of_patience(unsigned& queries) { return ++queries > kPatience; }

void wait_for(const std::function<bool()>& finished) {
    for (useconds_t pause = kFirstPoll;; pause = std::min(2 * pause, kLongestPoll)) {
        {
            LOCKED;
            if (finished()) return;
        }
        usleep(pause); // what is waited for is another process's part in a collective operation
    }
}

bool drain_all() {
    std::vector<Stream*> all; // the default streams first, as their handle is null
    for (auto& [key, stream] : streams()) all.push_back(stream.get());
    if (order() == Order::overtaking) std::reverse(all.begin(), all.end());
    bool worked = true;
    while (worked) {
        worked = false;
        for (Stream* stream : all) {
            while (stream->advance()) worked = true;
        }
    }
    return std::all_of(all.begin(), all.end(), [](Stream* stream) { return stream->idle(); });
}

} // namespace stub

// The tests' face of the stub, called through ctypes.

// Lines of name, tab, count; valid until the next call.
API const char* cuda_stub_counters() {
    LOCKED;
    static std::string text;
    text.clear();
    for (auto& [name, number] : stub::counters()) text += name + "\t" + std::to_string(number) + "\n";
    return text.c_str();
}

API void cuda_stub_reset_counters() {
    LOCKED;
    stub::counters().clear();
}

// 0 early, 1 late, 2 random, 3 overtaking; what is queued is done first.
API void cuda_stub_set_order(int order) {
    stub::wait_for(stub::drain_all);
    LOCKED;
    stub::order() = static_cast<stub::Order>(order);
}
