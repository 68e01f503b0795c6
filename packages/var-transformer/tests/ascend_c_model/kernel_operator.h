// An executable model of the part of Ascend C that the kernels use, for g++.
//
// Signatures are those of CANN 8.1's basic API; the semantics are its documentation's. The model
// is stricter than a simulator: it stops where a kernel relies on luck.
//
// - Local memory is 192 KiB; buffers beyond it, and accesses beyond a buffer, stop the kernel.
// - Addresses of vector instructions and copies are multiples of 32 bytes, and so are copies.
// - A byte that nobody wrote is not read. What a vector instruction writes is read or written by
//   another one only behind a barrier; what a copy brings, only once it was taken from its queue;
//   what the scalar unit writes, only behind its event.
// - Buffers of a queue go round: allocated, queued, taken, free.
// - Global memory is what the test announced, and every byte of a result is written once; where
//   it announced none (tensors of MindSpore's), that is not checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
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
  // when a byte was written: never, by whom that no vector instruction may rely on, or in which
  // epoch; a barrier begins the next epoch
  static constexpr uint32_t kNever = 0, kCopied = ~0u, kScalar = ~0u - 1, kSeen = 1;
  uint8_t memory[kBytes];
  uint32_t written[kBytes], read[kBytes];
  uint32_t epoch = 2, used = 0, most_used = 0;
  uint32_t block = 0, blocks = 1;
  std::vector<Region> regions;

  void Reset() {
    std::memset(memory, 0xAB, sizeof memory);
    std::memset(written, 0, sizeof written);
    std::memset(read, 0, sizeof read);
    epoch = 2;
    used = 0;
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
    Require(tensor.Owner()->state == Buffer::kAllocated, "a buffer is queued that was not allocated");
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
    Require(core.used + bytes <= Core::kBytes, "the buffers exceed the unified buffer");
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
void SetFlag(event_t) {}

template <HardEvent event>
void WaitFlag(event_t) {
  if (event != HardEvent::S_V) return;
  for (uint32_t& when : TheCore().written) {
    if (when == Core::kScalar) when = Core::kSeen;
  }
}

// ---------------------------------------------------------------- copies
template <typename T>
void DataCopy(const LocalTensor<T>& to, const GlobalTensor<T>& from, const uint32_t count) {
  const uint32_t bytes = count * sizeof(T);
  Require(bytes > 0 && bytes % 32 == 0, "a copy is no multiple of 32 bytes");
  Require(to.At() % 32 == 0, "a copy goes to no multiple of 32 bytes");
  to.CheckWithin(count);
  Require(to.Owner()->filled_by_copy && to.Owner()->state == Buffer::kAllocated,
          "a copy goes to a buffer that is not its own now");
  TheCore().Find(reinterpret_cast<uint8_t*>(from.Data()), bytes);
  std::memcpy(to.Data(), from.Data(), bytes);
  for (uint32_t i = to.At(); i < to.At() + bytes; ++i) TheCore().written[i] = Core::kCopied;
}

struct DataCopyParams {  // `count` pieces of `length` blocks, so many blocks apart
  DataCopyParams(uint16_t count, uint16_t length, uint16_t from_gap, uint16_t to_gap)
      : count(count), length(length), from_gap(from_gap), to_gap(to_gap) {}
  uint16_t count, length, from_gap, to_gap;
};

template <typename T>
void DataCopy(const LocalTensor<T>& to, const GlobalTensor<T>& from,
              const DataCopyParams& pieces) {
  Require(pieces.count >= 1 && pieces.count <= 4095 && pieces.length >= 1,
          "a copy has 1 to 4095 pieces of at least a block");
  const uint32_t numbers = 32 / sizeof(T);
  for (uint32_t i = 0; i < pieces.count; ++i) {
    DataCopy(to[i * (pieces.length + pieces.to_gap) * numbers],
             from[i * (pieces.length + pieces.from_gap) * numbers], pieces.length * numbers);
  }
}

template <typename T>
void DataCopy(const GlobalTensor<T>& to, const LocalTensor<T>& from, const uint32_t count) {
  const uint32_t bytes = count * sizeof(T);
  Require(bytes > 0 && bytes % 32 == 0, "a copy is no multiple of 32 bytes");
  Require(from.At() % 32 == 0, "a copy comes from no multiple of 32 bytes");
  from.CheckWithin(count);
  Require(from.Owner()->emptied_by_copy && from.Owner()->state == Buffer::kTaken,
          "a copy comes from a buffer that was not taken from its queue");
  for (uint32_t i = from.At(); i < from.At() + bytes; ++i) {
    Require(TheCore().written[i] == Core::kSeen, "a copy brings what nobody wrote");
  }
  if (Region* region = TheCore().Find(reinterpret_cast<uint8_t*>(to.Data()), bytes)) {
    Require(region->result, "an operand is overwritten");
    const uint64_t at = reinterpret_cast<uint8_t*>(to.Data()) - region->begin;
    for (uint64_t i = at; i < at + bytes; ++i) {
      Require(++region->written[i] == 1, "a result is written twice");
    }
  }
  std::memcpy(to.Data(), from.Data(), bytes);
}

// ---------------------------------------------------------------- vector instructions
// Spans of blocks or numbers that one instruction reads and writes.
struct Access {
  struct Span {
    uint32_t at, bytes;
  };
  std::vector<Span> reads, writes;

  template <typename T>
  void Check(const LocalTensor<T>& tensor, uint64_t elements, bool written) {
    tensor.CheckWithin(elements);
    const Buffer& owner = *tensor.Owner();
    if (owner.state == Buffer::kCalc) return;
    Require(owner.state == (written ? Buffer::kAllocated : Buffer::kTaken),
            "a vector instruction uses a queue's buffer that is not its own now");
    Require(written ? owner.emptied_by_copy : owner.filled_by_copy,
            "a vector instruction uses a queue the wrong way round");
  }

  template <typename T>
  void Read(const LocalTensor<T>& tensor, uint32_t elements, uint32_t align = 32) {
    Require(tensor.At() % align == 0, "a vector instruction reads from no multiple of 32 bytes");
    Check(tensor, elements, false);
    reads.push_back({tensor.At(), static_cast<uint32_t>(elements * sizeof(T))});
  }

  template <typename T>
  void Write(const LocalTensor<T>& tensor, uint32_t elements, uint32_t align = 32) {
    Require(tensor.At() % align == 0, "a vector instruction writes to no multiple of 32 bytes");
    Check(tensor, elements, true);
    writes.push_back({tensor.At(), static_cast<uint32_t>(elements * sizeof(T))});
  }

  void Commit() {
    Core& core = TheCore();
    for (const Span& span : reads) core.CheckRead(span.at, span.bytes);
    for (const Span& span : writes) core.CheckWrite(span.at, span.bytes);
    for (const Span& span : reads) core.Mark(core.read, span.at, span.bytes);
    for (const Span& span : writes) core.Mark(core.written, span.at, span.bytes);
  }
};

inline float ToFloat(float x) { return x; }
inline float ToFloat(half x) { return static_cast<float>(x); }
inline float ToFloat(bfloat16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void FromFloat(float x, half* to) { *to = static_cast<half>(x); }
inline void FromFloat(float x, bfloat16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to->bits = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // nearest even
}

template <typename T, typename F>
void Elementwise(const LocalTensor<T>& to, const LocalTensor<T>& a, int32_t count, F function) {
  Access access;
  access.Read(a, count);
  access.Write(to, count);
  access.Commit();
  for (int32_t i = 0; i < count; ++i) to.Data()[i] = function(a.Data()[i]);
}

template <typename T, typename F>
void Elementwise(const LocalTensor<T>& to, const LocalTensor<T>& a, const LocalTensor<T>& b,
                 int32_t count, F function) {
  Access access;
  access.Read(a, count);
  access.Read(b, count);
  access.Write(to, count);
  access.Commit();
  for (int32_t i = 0; i < count; ++i) to.Data()[i] = function(a.Data()[i], b.Data()[i]);
}

inline void Cast(const LocalTensor<float>& to, const LocalTensor<half>& from, const RoundMode& mode,
                 const uint32_t count) {
  Require(mode == RoundMode::CAST_NONE, "widening does not round");
  Access access;
  access.Read(from, count);
  access.Write(to, count);
  access.Commit();
  for (uint32_t i = 0; i < count; ++i) to.Data()[i] = ToFloat(from.Data()[i]);
}

inline void Cast(const LocalTensor<float>& to, const LocalTensor<bfloat16_t>& from,
                 const RoundMode& mode, const uint32_t count) {
  Require(mode == RoundMode::CAST_NONE, "widening does not round");
  Access access;
  access.Read(from, count);
  access.Write(to, count);
  access.Commit();
  for (uint32_t i = 0; i < count; ++i) to.Data()[i] = ToFloat(from.Data()[i]);
}

template <typename T>
void Cast(const LocalTensor<T>& to, const LocalTensor<float>& from, const RoundMode& mode,
          const uint32_t count) {
  Require(mode == RoundMode::CAST_RINT, "to bfloat16 there is no cast without a rounding mode");
  Access access;
  access.Read(from, count);
  access.Write(to, count);
  access.Commit();
  for (uint32_t i = 0; i < count; ++i) FromFloat(from.Data()[i], to.Data() + i);
}

template <typename T>
void Duplicate(const LocalTensor<T>& to, const T& value, const int32_t count) {
  Access access;
  access.Write(to, count);
  access.Commit();
  for (int32_t i = 0; i < count; ++i) to.Data()[i] = value;
}

template <typename T>
void Adds(const LocalTensor<T>& to, const LocalTensor<T>& a, const T& b, const int32_t& count) {
  Elementwise(to, a, count, [b](T x) { return x + b; });
}

template <typename T>
void Muls(const LocalTensor<T>& to, const LocalTensor<T>& a, const T& b, const int32_t& count) {
  Elementwise(to, a, count, [b](T x) { return x * b; });
}

template <typename T>
void Maxs(const LocalTensor<T>& to, const LocalTensor<T>& a, const T& b, const int32_t& count) {
  Elementwise(to, a, count, [b](T x) { return x > b ? x : b; });
}

template <typename T>
void Sqrt(const LocalTensor<T>& to, const LocalTensor<T>& a, const int32_t& count) {
  Elementwise(to, a, count, [](T x) { return std::sqrt(x); });
}

template <typename T>
void Add(const LocalTensor<T>& to, const LocalTensor<T>& a, const LocalTensor<T>& b,
         const int32_t& count) {
  Elementwise(to, a, b, count, [](T x, T y) { return x + y; });
}

template <typename T>
void Mul(const LocalTensor<T>& to, const LocalTensor<T>& a, const LocalTensor<T>& b,
         const int32_t& count) {
  Elementwise(to, a, b, count, [](T x, T y) { return x * y; });
}

template <typename T>
void Div(const LocalTensor<T>& to, const LocalTensor<T>& a, const LocalTensor<T>& b,
         const int32_t& count) {
  Elementwise(to, a, b, count, [](T x, T y) { return x / y; });
}

struct BinaryRepeatParams {
  BinaryRepeatParams(uint8_t to, uint8_t a, uint8_t b, uint8_t repeat_to, uint8_t repeat_a,
                     uint8_t repeat_b)
      : block{to, a, b}, repeat{repeat_to, repeat_a, repeat_b} {}
  uint8_t block[3], repeat[3];  // strides, in blocks of 32 bytes
};

// `mask` numbers a repeat, in blocks of eight; both from block to block and from repeat to repeat.
template <typename F>
void Repeated(const LocalTensor<float>& to, const LocalTensor<float>& a,
              const LocalTensor<float>& b, uint64_t mask, uint8_t repeats,
              const BinaryRepeatParams& strides, F function) {
  Require(mask >= 1 && mask <= 64, "a repeat has 1 to 64 numbers");
  Require(repeats >= 1, "an instruction has 1 to 255 repeats");
  const LocalTensor<float> tensors[3] = {to, a, b};
  Access access;
  for (uint32_t r = 0; r < repeats; ++r) {
    for (uint32_t block = 0; block * 8 < mask; ++block) {
      const uint32_t numbers = mask - block * 8 < 8 ? mask - block * 8 : 8;
      LocalTensor<float> part[3];
      for (int i = 0; i < 3; ++i) {
        part[i] = tensors[i][8 * (r * strides.repeat[i] + block * strides.block[i])];
      }
      access.Write(part[0], numbers);
      access.Read(part[1], numbers);
      access.Read(part[2], numbers);
      for (uint32_t n = 0; n < numbers; ++n) {
        part[0].Data()[n] = function(part[1].Data()[n], part[2].Data()[n]);
      }
    }
  }
  access.Commit();
}

inline void Add(const LocalTensor<float>& to, const LocalTensor<float>& a,
                const LocalTensor<float>& b, uint64_t mask, const uint8_t repeats,
                const BinaryRepeatParams& strides) {
  Repeated(to, a, b, mask, repeats, strides, [](float x, float y) { return x + y; });
}

inline void Mul(const LocalTensor<float>& to, const LocalTensor<float>& a,
                const LocalTensor<float>& b, uint64_t mask, const uint8_t repeats,
                const BinaryRepeatParams& strides) {
  Repeated(to, a, b, mask, repeats, strides, [](float x, float y) { return x * y; });
}

template <typename T>
void WholeReduceSum(const LocalTensor<T>& to, const LocalTensor<T>& from, const int32_t mask,
                    const int32_t repeats, const int32_t repeat_to, const int32_t block_from,
                    const int32_t repeat_from) {
  Require(mask >= 1 && mask <= 64, "a repeat has 1 to 64 numbers");
  Require(repeats >= 1 && repeats <= 255, "an instruction has 1 to 255 repeats");
  Require(repeat_from >= 0 && repeat_from <= 255 && block_from == 1, "strides are 0 to 255 blocks");
  Access access;
  for (int32_t r = 0; r < repeats; ++r) {
    const LocalTensor<T> part = from[r * repeat_from * 8], sum = to[r * repeat_to];
    access.Read(part, mask);
    access.Write(sum, 1, sizeof(T));
    std::vector<T> tree(part.Data(), part.Data() + mask);  // by halves, as the unit does
    for (size_t size = tree.size(); size > 1; size = (size + 1) / 2) {
      for (size_t i = 0; i < size / 2; ++i) tree[i] = tree[2 * i] + tree[2 * i + 1];
      if (size % 2) tree[size / 2] = tree[size - 1];
    }
    sum.Data()[0] = tree[0];
  }
  access.Commit();
}

struct BrcbRepeatParams {
  BrcbRepeatParams(uint16_t block, uint16_t repeat) : block(block), repeat(repeat) {}
  uint16_t block, repeat;
};

inline void Brcb(const LocalTensor<float>& to, const LocalTensor<float>& from,
                 const uint8_t repeats, const BrcbRepeatParams& strides) {
  Require(repeats >= 1, "an instruction has 1 to 255 repeats");
  Access access;
  for (uint32_t r = 0; r < repeats; ++r) {
    access.Read(from[r * 8], 8);
    for (uint32_t i = 0; i < 8; ++i) {
      const LocalTensor<float> block = to[8 * (r * strides.repeat + i * strides.block)];
      access.Write(block, 8);
      for (uint32_t n = 0; n < 8; ++n) block.Data()[n] = from.Data()[r * 8 + i];
    }
  }
  access.Commit();
}

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() {
  static AscendC::TPipe pipe;
  return &pipe;
}

#define ICPU_RUN_KF(kernel, count, ...)              \
  do {                                               \
    AscendC::Core& core = AscendC::TheCore();        \
    core.blocks = count;                             \
    for (uint32_t b = 0; b < core.blocks; ++b) {     \
      core.Reset();                                  \
      core.block = b;                                \
      kernel(__VA_ARGS__);                           \
    }                                                \
  } while (false)
