// An executable model of the part of Ascend C that the kernels use, for g++.
//
// Signatures are those of CANN 8.1's basic API; the semantics are its documentation's. The model
// is stricter than a simulator: it stops where a kernel relies on luck.
//
// - Local memory is 192 KiB, the upper 8 of which are the library's; buffers beyond the rest, and
// accesses beyond a buffer, stop the kernel.
// - Addresses of vector instructions and copies are multiples of 32 bytes, and so are copies.
// - A byte that nobody wrote is not read. What a vector instruction writes is read or written by
//   another one only behind a barrier; what a copy brings, only once it was taken from its queue;
//   what the scalar unit writes, only behind its event. A flag is set once for each wait.
// - Buffers of a queue go round: allocated, queued, taken, free.
// - Global memory is what the test announced, and every byte of a result is written once; where
//   it announced none (tensors of MindSpore's), that is not checked.
#pragma once

#include "memory.h"
#include "vector_instructions.h"

namespace AscendC {

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
void DataCopy(const LocalTensor<T>& to, const GlobalTensor<T>& from, const DataCopyParams& pieces) {
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

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() {
  static AscendC::TPipe pipe;
  return &pipe;
}
