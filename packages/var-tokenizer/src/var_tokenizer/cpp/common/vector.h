// The vector that the kernels compute with: one register of the variant's instruction set. Tile
// sizes follow from its size and from the number of registers.
#pragma once

#include <cstdint>

#ifdef __clang__
#error "the kernels need g++: Clang lacks __builtin_shuffle, and aligns vectors that are not"
#endif

#if defined(__AVX512F__)
constexpr int lanes = 16, registers = 32;
#elif defined(__AVX__)
constexpr int lanes = 8, registers = 16;
#elif defined(__aarch64__)
constexpr int lanes = 4, registers = 32;
#else
constexpr int lanes = 4, registers = 16;
#endif

using Vector = float __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
