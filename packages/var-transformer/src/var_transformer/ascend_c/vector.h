// Shared by both kernels: instructions over rows, with the barriers that dependent ones need.
#pragma once

#include "kernel_operator.h"
#include "tiling.h"

namespace var_transformer {

using AscendC::GlobalTensor;
using AscendC::LocalTensor;

// A vector instruction sees the results of the one before it only behind a barrier.
__aicore__ inline void Barrier() { AscendC::PipeBarrier<PIPE_V>(); }

template <typename T>
__aicore__ inline void Widen(const LocalTensor<float>& to, const LocalTensor<T>& from, uint32_t n) {
  AscendC::Cast(to, from, AscendC::RoundMode::CAST_NONE, n);
}

template <>
__aicore__ inline void Widen<float>(const LocalTensor<float>& to, const LocalTensor<float>& from,
                                    uint32_t n) {
  AscendC::Adds(to, from, 0.0f, n);
}

template <typename T>
__aicore__ inline void Narrow(const LocalTensor<T>& to, const LocalTensor<float>& from,
                              uint32_t n) {
  AscendC::Cast(to, from, AscendC::RoundMode::CAST_RINT, n);
}

template <>
__aicore__ inline void Narrow<float>(const LocalTensor<float>& to, const LocalTensor<float>& from,
                                     uint32_t n) {
  AscendC::Adds(to, from, 0.0f, n);
}

// column: n values, each eight times (one block), from `values` (n, rounded up to eights).
__aicore__ inline void Spread(const LocalTensor<float>& column, const LocalTensor<float>& values,
                              uint32_t n) {
  AscendC::Brcb(column, values, RoundUp(n, 8) / 8, {1, 8});
}

}  // namespace var_transformer
