// Entry points of the kernels, one for each type, and how the host starts them.
#include "kernel_operator.h"
#include "launch.h"
#include "modulated_norm.h"
#include "unit_heads.h"

#ifdef ASCENDC_CPU_DEBUG  // as CANN's own CPU debugging starts kernels
#include "tikicpulib.h"
#define LAUNCH(kernel, cores, stream, ...) ICPU_RUN_KF(kernel, cores, __VA_ARGS__)
#else
#define LAUNCH(kernel, cores, stream, ...) kernel<<<cores, nullptr, stream>>>(__VA_ARGS__)
#endif

using namespace var_transformer;

#define MODULATED_NORM(NAME, From, To)                                                           \
  extern "C" __global__ __aicore__ void NAME(GM_ADDR x, GM_ADDR scale, GM_ADDR shift, GM_ADDR y, \
                                             ModulatedNormTiling tiling) {                       \
    AscendC::TPipe pipe;                                                                         \
    ModulatedNorm<From, To> norm;                                                                \
    norm.Init(x, scale, shift, y, tiling, &pipe);                                                \
    norm.Process();                                                                              \
  }

MODULATED_NORM(var_modulated_norm_float32, float, float)
MODULATED_NORM(var_modulated_norm_float32_float16, float, half)
MODULATED_NORM(var_modulated_norm_float32_bfloat16, float, bfloat16_t)
MODULATED_NORM(var_modulated_norm_float16, half, half)
MODULATED_NORM(var_modulated_norm_bfloat16, bfloat16_t, bfloat16_t)

#define UNIT_HEADS(NAME, From, To)                                                      \
  extern "C" __global__ __aicore__ void NAME(GM_ADDR qkv, GM_ADDR scale, GM_ADDR q_out, \
                                             GM_ADDR k_out, GM_ADDR v_out,              \
                                             UnitHeadsTiling tiling) {                  \
    AscendC::TPipe pipe;                                                                \
    UnitHeads<From, To> heads;                                                          \
    heads.Init(qkv, scale, q_out, k_out, v_out, tiling, &pipe);                         \
    heads.Process();                                                                    \
  }

UNIT_HEADS(var_unit_heads_float32_float16, float, half)
UNIT_HEADS(var_unit_heads_float32_bfloat16, float, bfloat16_t)
UNIT_HEADS(var_unit_heads_float16, half, half)
UNIT_HEADS(var_unit_heads_bfloat16, bfloat16_t, bfloat16_t)

namespace var_transformer {

static uint8_t* Address(void* pointer) { return static_cast<uint8_t*>(pointer); }

void LaunchModulatedNorm(DType from, DType to, void* stream, void* x, void* scale, void* shift,
                         void* y, const ModulatedNormTiling& tiling) {
#define START(kernel)                                                                          \
  LAUNCH(kernel, tiling.cores, stream, Address(x), Address(scale), Address(shift), Address(y), \
         tiling)
  if (to == DType::kFloat32) {
    START(var_modulated_norm_float32);
  } else if (from == DType::kFloat32 && to == DType::kFloat16) {
    START(var_modulated_norm_float32_float16);
  } else if (from == DType::kFloat32) {
    START(var_modulated_norm_float32_bfloat16);
  } else if (to == DType::kFloat16) {
    START(var_modulated_norm_float16);
  } else {
    START(var_modulated_norm_bfloat16);
  }
#undef START
}

void LaunchUnitHeads(DType from, DType to, void* stream, void* qkv, void* scale, void* q_out,
                     void* k_out, void* v_out, const UnitHeadsTiling& tiling) {
#define START(kernel)                                                                \
  LAUNCH(kernel, tiling.cores, stream, Address(qkv), Address(scale), Address(q_out), \
         Address(k_out), Address(v_out), tiling)
  if (from == DType::kFloat32 && to == DType::kFloat16) {
    START(var_unit_heads_float32_float16);
  } else if (from == DType::kFloat32) {
    START(var_unit_heads_float32_bfloat16);
  } else if (to == DType::kFloat16) {
    START(var_unit_heads_float16);
  } else {
    START(var_unit_heads_bfloat16);
  }
#undef START
}

}  // namespace var_transformer
