// The model's vector instructions, and what they may read and write.
#pragma once

#include "memory.h"

namespace AscendC {

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
