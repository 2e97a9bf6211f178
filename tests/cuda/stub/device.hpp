// What the stub's parts share: the queues of the device, its memory, and the counters that tests read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

namespace stub {

// One lock for everything: the stub is for finding faults, not for speed.
extern std::recursive_mutex mutex;
#define LOCKED std::lock_guard<std::recursive_mutex> locked_(::stub::mutex)

void count(const std::string& what);

// When the work in a queue is done: at once, not before somebody waits for it, or at any time in between. `overtaking` is
// late, too, but when all is waited for, other streams are ahead of the default one instead of behind it.
enum class Order { early, late, random, overtaking };

// A piece of the device's work. Does what it can without blocking and says whether it is finished.
using Operation = std::function<bool()>;

class Stream {
  public:
    void push(Operation operation);
    // Does the next operation; false where there is none or it cannot be finished yet.
    bool advance();
    // Does what can be done; true where nothing is left.
    bool drain();
    bool idle() const { return queue_.empty(); }
    unsigned queries = 0; // fruitless ones in a row

  private:
    std::deque<Operation> queue_;
    bool advancing_ = false;
};

// As in CUDA, an event stands for its latest recording.
class Event {
  public:
    void record(const std::shared_ptr<Event>& self, Stream* stream);
    uint64_t recorded() const { return recorded_; }
    bool reached(uint64_t recording) const { return done_ >= recording; }
    // Works towards a recording, as a stream that waits for it does; true where it is reached.
    bool pursue(uint64_t recording);
    unsigned queries = 0;

  private:
    uint64_t recorded_ = 0, done_ = 0;
    std::map<uint64_t, Stream*> streams_; // of recordings that are not reached
};

// The stream of a handle; the default stream is another one on each device.
Stream* stream_of(const void* handle);
// Gives the device the chance to work while the host does something else.
void let_work();
// Whether a query that found unfinished work shall do a piece of it: nobody waits for ever.
bool out_of_patience(unsigned& queries);
// Blocks the calling thread until `finished`, called under the lock, returns true.
void wait_for(const std::function<bool()>& finished);
bool drain_all();

enum class Place { device, pinned, pageable };
Place place_of(const void* pointer);
int device_of(const void* pointer);
int current_device();

void launch(const void* stream);
// Whether a graph is being captured, which takes what would have been launched (graphs.cpp).
bool note_in_graph();

} // namespace stub
