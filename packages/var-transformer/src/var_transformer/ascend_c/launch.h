// The kernels, as the host starts them. Addresses are the device's.
#pragma once

#include "tiling.h"

namespace var_transformer {

// from: of x; to: of the rest. float32 to any type, a half type only to itself.
void LaunchModulatedNorm(DType from, DType to, void* stream, void* x, void* scale, void* shift,
                         void* y, const ModulatedNormTiling& tiling);

// from -> to: float32 or a half type -> a half type; halves only to themselves.
void LaunchUnitHeads(DType from, DType to, void* stream, void* qkv, void* scale, void* q_out,
                     void* k_out, void* v_out, const UnitHeadsTiling& tiling);

}  // namespace var_transformer
