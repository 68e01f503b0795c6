// The model's core: local and global memory, tensors, queues and synchronization.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#define ASCENDC_CPU_DEBUG 1
#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR uint8_t*

using half = _Float16;

struct bfloat16_t {
  uint16_t bits;
};

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };
enum event_t { EVENT_ID0 };

namespace AscendC {

enum class TPosition { GM, VECIN, VECOUT, VECCALC };
enum class HardEvent { S_V, V_S };
enum class RoundMode { CAST_NONE, CAST_RINT };

inline void Require(bool held, const std::string& rule) {
  if (!held) throw std::runtime_error(rule);
}

// ---------------------------------------------------------------- the core
struct Buffer {
  enum State { kCalc, kFree, kAllocated, kQueued, kTaken };
  uint32_t begin = 0, bytes = 0;
  State state = kFree;
  bool filled_by_copy = false, emptied_by_copy = false;
};

struct Region {  // of global memory
  uint8_t* begin;
  uint64_t bytes;
  bool result;
  std::vector<uint8_t> written;  // times, a byte
};

struct Core {
  static constexpr uint32_t kBytes = 192 * 1024;
  static constexpr uint32_t kScratch = 8 * 1024;  // the upper part, which the library itself uses
  // when a byte was written: never, by whom that no vector instruction may rely on, or in which
  // epoch; a barrier begins the next epoch
  static constexpr uint32_t kNever = 0, kCopied = ~0u, kScalar = ~0u - 1, kSeen = 1;
  uint8_t memory[kBytes];
  uint32_t written[kBytes], read[kBytes];
  uint32_t epoch = 2, used = 0, most_used = 0;
  uint32_t block = 0, blocks = 1;
  std::set<HardEvent> flags;  // that are set and nobody waited for yet
  std::vector<Region> regions;

  void Reset() {
    std::memset(memory, 0xAB, sizeof memory);
    std::memset(written, 0, sizeof written);
    std::memset(read, 0, sizeof read);
    epoch = 2;
    used = 0;
    flags.clear();
  }

  void CheckRead(uint32_t at, uint32_t bytes) {
    for (uint32_t i = at; i < at + bytes; ++i) {
      Require(written[i] != kNever, "a vector instruction reads what nobody wrote");
      Require(written[i] != kCopied, "a vector instruction reads a copy that is under way");
      Require(written[i] != kScalar, "a vector instruction does not wait for the scalar unit");
      Require(written[i] < epoch, "a vector instruction reads without a barrier");
    }
  }

  void CheckWrite(uint32_t at, uint32_t bytes) {
    for (uint32_t i = at; i < at + bytes; ++i) {
      Require(written[i] != epoch && read[i] != epoch,
              "a vector instruction overwrites without a barrier");
    }
  }

  void Mark(uint32_t* marks, uint32_t at, uint32_t bytes) {
    for (uint32_t i = at; i < at + bytes; ++i) marks[i] = epoch;
  }

  Region* Find(const uint8_t* at, uint64_t bytes) {
    if (regions.empty()) return nullptr;
    for (Region& region : regions) {
      if (at >= region.begin && at + bytes <= region.begin + region.bytes) return &region;
    }
    throw std::runtime_error("global memory is accessed outside of every tensor");
  }
};

inline Core& TheCore() {
  static Core core;
  return core;
}

inline int64_t GetBlockIdx() { return TheCore().block; }
inline int64_t GetBlockNum() { return TheCore().blocks; }

// ---------------------------------------------------------------- tensors
template <typename T>
class LocalTensor {
 public:
  LocalTensor() = default;
  LocalTensor(Buffer* buffer, uint32_t at) : buffer_(buffer), at_(at) {}

  LocalTensor operator[](uint32_t offset) const {
    return LocalTensor(buffer_, at_ + offset * sizeof(T));
  }

  T* Data() const { return reinterpret_cast<T*>(TheCore().memory + at_); }
  Buffer* Owner() const { return buffer_; }
  uint32_t At() const { return at_; }

  void CheckWithin(uint64_t elements) const {
    Require(buffer_ != nullptr, "a tensor without a buffer is used");
    Require(at_ >= buffer_->begin && at_ + elements * sizeof(T) <= buffer_->begin + buffer_->bytes,
            "an instruction goes beyond its buffer");
  }

  void SetValue(uint32_t index, T value) const {
    (*this)[index].CheckWithin(1);
    Data()[index] = value;
    for (uint32_t i = 0; i < sizeof(T); ++i) {
      TheCore().written[at_ + index * sizeof(T) + i] = Core::kScalar;
    }
  }

 private:
  Buffer* buffer_ = nullptr;
  uint32_t at_ = 0;
};

template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* address) { address_ = address; }

  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor part;
    part.SetGlobalBuffer(address_ + offset);
    return part;
  }

  T GetValue(uint64_t index) const {
    TheCore().Find(reinterpret_cast<const uint8_t*>(address_ + index), sizeof(T));
    return address_[index];
  }

  T* Data() const { return address_; }

 private:
  T* address_ = nullptr;
};

// ---------------------------------------------------------------- queues and buffers
template <TPosition source, TPosition target, int32_t depth>
class TQueBind {
  static_assert(depth == 1,
                "a buffer is queued and taken at once; InitBuffer says how many there are");

 public:
  template <typename T>
  LocalTensor<T> AllocTensor() {
    for (Buffer& buffer : buffers_) {
      if (buffer.state == Buffer::kFree) {
        buffer.state = Buffer::kAllocated;
        return LocalTensor<T>(&buffer, buffer.begin);
      }
    }
    throw std::runtime_error("a queue has no free buffer: the kernel would wait for ever");
  }

  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor) {
    Require(tensor.Owner()->state == Buffer::kAllocated,
            "a buffer is queued that was not allocated");
    Require(queue_.size() < depth, "a queue is longer than its depth");
    tensor.Owner()->state = Buffer::kQueued;
    queue_.push_back(tensor.Owner());
    return true;
  }

  template <typename T>
  LocalTensor<T> DeQue() {
    Require(!queue_.empty(), "an empty queue is read: the kernel would wait for ever");
    Buffer* buffer = queue_.front();
    queue_.erase(queue_.begin());
    buffer->state = Buffer::kTaken;
    Core& core = TheCore();
    for (uint32_t i = buffer->begin; i < buffer->begin + buffer->bytes; ++i) {
      if (core.written[i] != Core::kNever) core.written[i] = Core::kSeen;
      core.read[i] = 0;
    }
    return LocalTensor<T>(buffer, buffer->begin);
  }

  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor) {
    Buffer* buffer = tensor.Owner();
    Require(buffer->state == Buffer::kTaken, "a buffer is freed that was not taken from its queue");
    buffer->state = Buffer::kFree;
    Core& core = TheCore();
    for (uint32_t i = buffer->begin; i < buffer->begin + buffer->bytes; ++i) {
      core.written[i] = Core::kNever;
      core.read[i] = 0;
    }
    tensor = LocalTensor<T>();
  }

  std::vector<Buffer> buffers_;

 private:
  std::vector<Buffer*> queue_;
};

template <TPosition position, int32_t depth>
class TQue : public TQueBind<position, position, depth> {
 public:
  static constexpr bool kIn = position == TPosition::VECIN;
};

template <TPosition position>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() {
    return LocalTensor<T>(&buffer_, buffer_.begin);
  }
  Buffer buffer_;
};

class TPipe {
 public:
  template <TPosition position, int32_t depth>
  bool InitBuffer(TQue<position, depth>& queue, uint8_t count, uint32_t bytes) {
    queue.buffers_.resize(count);
    for (Buffer& buffer : queue.buffers_) {
      Take(buffer, bytes);
      buffer.state = Buffer::kFree;
      buffer.filled_by_copy = position == TPosition::VECIN;
      buffer.emptied_by_copy = position == TPosition::VECOUT;
    }
    return true;
  }

  template <TPosition position>
  bool InitBuffer(TBuf<position>& buffer, uint32_t bytes) {
    Take(buffer.buffer_, bytes);
    buffer.buffer_.state = Buffer::kCalc;
    return true;
  }

  event_t FetchEventID(HardEvent) { return EVENT_ID0; }

 private:
  void Take(Buffer& buffer, uint32_t bytes) {
    Core& core = TheCore();
    Require(bytes > 0 && bytes % 32 == 0, "a buffer is no multiple of 32 bytes");
    Require(core.used + bytes <= Core::kBytes - Core::kScratch,
            "the buffers exceed the unified buffer");
    buffer.begin = core.used;
    buffer.bytes = bytes;
    core.used += bytes;
    if (core.used > core.most_used) core.most_used = core.used;
  }
};

// ---------------------------------------------------------------- synchronization
template <pipe_t pipe>
void PipeBarrier() {
  static_assert(pipe == PIPE_V, "the model knows barriers of the vector unit");
  ++TheCore().epoch;
}

template <HardEvent event>
void SetFlag(event_t) {
  Require(TheCore().flags.insert(event).second, "a flag is set twice");
}

template <HardEvent event>
void WaitFlag(event_t) {
  Require(TheCore().flags.erase(event) == 1,
          "a flag is waited for that nobody set: the kernel would wait for ever");
  if (event != HardEvent::S_V) return;
  for (uint32_t& when : TheCore().written) {
    if (when == Core::kScalar) when = Core::kSeen;
  }
}

}  // namespace AscendC
