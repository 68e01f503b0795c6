// The vector that the kernels compute with: 64 bytes, one of 32 registers with AVX-512, two of 16
// with AVX2, four of 32 with NEON. Tile sizes are chosen for AVX-512; each says how.
#pragma once

#include <cstdint>

constexpr int lanes = 16;
using Vector = float __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
