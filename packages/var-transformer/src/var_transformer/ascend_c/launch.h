// The kernels, as the host starts them. Addresses are the device's.
#pragma once

#include "tiling.h"

namespace var_transformer {

void LaunchModulatedNorm(DType dtype, void* stream, void* x, void* scale, void* shift, void* y,
                         const ModulatedNormTiling& tiling);

// from -> to: float32 or a half type -> a half type; halves only to themselves.
void LaunchUnitHeads(DType from, DType to, void* stream, void* qkv, void* scale, void* q_out,
                     void* k_out, void* v_out, const UnitHeadsTiling& tiling);

}  // namespace var_transformer
