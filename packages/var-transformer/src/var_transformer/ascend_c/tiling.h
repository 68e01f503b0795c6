// How the fused operators share rows among cores and cut them into tiles that fit the unified
// buffer. Plain C++ without any Ascend header: the host plans with it, the kernels follow the
// plan, and the tests compile it with g++.
#pragma once

#include <cstdint>

// Ascend C's words for "on the device" and "on both"; nothing for a compiler without NPUs, and in
// CANN's CPU debugging, which knows the first one only.
#ifndef __aicore__
#define __aicore__
#define __host_aicore__
#endif
#ifndef __host_aicore__
#ifdef ASCENDC_CPU_DEBUG
#define __host_aicore__
#else
#define __host_aicore__ [ host, aicore ]
#endif
#endif

namespace var_transformer {

constexpr uint32_t kBlock = 32;  // bytes; local addresses and copies are multiples
// bytes of a vector core of Ascend 910B, whose upper 8 KiB the library uses itself
constexpr uint32_t kUnifiedBuffer = (192 - 8) * 1024;
constexpr uint32_t kLanes = 64;     // float32 values of one repeat of an instruction
constexpr uint32_t kRepeats = 248;  // of one instruction: at most 255, in eights
constexpr uint32_t kFloat = 4;      // bytes

enum class DType : uint32_t { kFloat32, kFloat16, kBfloat16 };

constexpr uint32_t Bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

__host_aicore__ constexpr inline uint32_t Least(uint32_t a, uint32_t b) { return a < b ? a : b; }

__host_aicore__ constexpr inline uint32_t RoundUp(uint32_t a, uint32_t b) {
  return (a + b - 1) / b * b;
}

struct Share {
  uint32_t begin, end;
};

// The rows of one core: contiguous, and no core has more than one row more than another.
__aicore__ inline Share ShareOf(uint32_t rows, uint32_t cores, uint32_t core) {
  const uint32_t each = rows / cores, more = rows % cores;
  const uint32_t begin = core * each + Least(core, more);
  return {begin, begin + each + (core < more ? 1 : 0)};
}

// How many rows a tile takes from `row` on: at most `most`, and never rows of two images.
__aicore__ inline uint32_t TileRows(uint32_t row, uint32_t end, uint32_t length, uint32_t most) {
  const uint32_t of_image = (row / length + 1) * length;
  return Least(most, Least(end, of_image) - row);
}

// ---------------------------------------------------------------- modulated_norm
// Rows (images * length, width) are normalized and modulated by one row an image.
struct ModulatedNormTiling {
  uint32_t images, length, width;
  uint32_t cores;      // as many as are launched
  uint32_t tile_rows;  // 0: not for this operator (see PlanModulatedNorm)
  float epsilon;
};

// Bytes of the local buffers; both queues hold two tiles, so that copies and sums overlap.
struct ModulatedNormBuffers {
  uint32_t read, written, wide, squares, modulation, staged, partials, column, sums;

  constexpr uint32_t Total() const {
    return 2 * read + 2 * written + wide + squares + 2 * modulation + staged + partials + column +
           2 * sums;
  }
};

// from, to: bytes of a number of x, and of the modulation and the result.
__host_aicore__ inline ModulatedNormBuffers BuffersOf(uint32_t rows, uint32_t width, uint32_t from,
                                                      uint32_t to) {
  const uint32_t all = rows * width, many = RoundUp(rows, 8);  // Brcb spreads eight at a time
  return {all * from,     all * to,       all * kFloat,           all * kFloat,
          width * kFloat, 2 * width * to, rows * kLanes * kFloat, many * kBlock,
          many * kFloat};
}

// tile_rows is 0 if the width is not a multiple of 64 or above 4096: sums of a row are taken over
// repeats of 64 values, then over at most 64 sums.
inline ModulatedNormTiling PlanModulatedNorm(uint32_t images, uint32_t length, uint32_t width,
                                             DType from, DType to, uint32_t cores, float epsilon) {
  const uint32_t rows = images * length;
  ModulatedNormTiling tiling = {images, length, width, Least(cores, rows), 0, epsilon};
  if (rows == 0 || width == 0 || width % kLanes != 0 || width > kLanes * kLanes) return tiling;
  const uint32_t share = (rows + tiling.cores - 1) / tiling.cores;
  uint32_t most = Least(kRepeats, Least(share, length));
  while (BuffersOf(most, width, Bytes(from), Bytes(to)).Total() > kUnifiedBuffer) --most;
  tiling.tile_rows = most;
  return tiling;
}

// ---------------------------------------------------------------- unit_heads
// Queries and keys in rows (images * length, 3 * heads * head_width) are scaled to length 1 a head,
// queries times a learned scale; keys and values go to rows `first` and later of an image's
// `capacity` rows.
struct UnitHeadsTiling {
  uint32_t images, length, heads, head_width;
  uint32_t capacity, first;
  uint32_t cores;
  uint32_t tile_rows;  // 0: not for this operator (see PlanUnitHeads)
};

struct UnitHeadsBuffers {
  uint32_t read, written, wide, squares, column, sums;

  constexpr uint32_t Total() const {
    return 2 * read + 2 * written + wide + squares + column + 3 * sums;
  }
};

__host_aicore__ inline UnitHeadsBuffers BuffersOf(uint32_t rows, uint32_t heads,
                                                  uint32_t head_width, uint32_t from, uint32_t to) {
  const uint32_t all = rows * heads, many = RoundUp(all, 8);
  return {all * head_width * from,   all * head_width * to, all * head_width * kFloat,
          all * head_width * kFloat, many * kBlock,         many * kFloat};
}

// tile_rows is 0 if the head width is not a multiple of 16 or above 64 (a head is one repeat of an
// instruction), if a row has more than 248 heads or does not fit, or if the cache is too short.
inline UnitHeadsTiling PlanUnitHeads(uint32_t images, uint32_t length, uint32_t heads,
                                     uint32_t head_width, uint32_t capacity, uint32_t first,
                                     DType from, DType to, uint32_t cores) {
  const uint32_t rows = images * length;
  UnitHeadsTiling tiling = {images, length, heads, head_width, capacity, first, Least(cores, rows),
                            0};
  if (rows == 0 || heads == 0 || heads > kRepeats || first + length > capacity) return tiling;
  if (head_width == 0 || head_width % 16 != 0 || head_width > kLanes) return tiling;
  const uint32_t share = (rows + tiling.cores - 1) / tiling.cores;
  uint32_t most = Least(kRepeats / heads, Least(share, length));
  while (most > 0 &&
         BuffersOf(most, heads, head_width, Bytes(from), Bytes(to)).Total() > kUnifiedBuffer) {
    --most;
  }
  tiling.tile_rows = most;
  return tiling;
}

}  // namespace var_transformer
