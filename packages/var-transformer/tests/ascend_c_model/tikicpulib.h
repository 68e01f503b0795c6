// How CANN's CPU debugging starts a kernel, on the model: one core after another.
#pragma once

#include "kernel_operator.h"

#define ICPU_RUN_KF(kernel, count, ...)                                            \
  do {                                                                             \
    AscendC::Core& core = AscendC::TheCore();                                      \
    core.blocks = count;                                                           \
    for (uint32_t b = 0; b < core.blocks; ++b) {                                   \
      core.Reset();                                                                \
      core.block = b;                                                              \
      kernel(__VA_ARGS__);                                                         \
      AscendC::Require(core.flags.empty(), "a flag is set that nobody waits for"); \
    }                                                                              \
  } while (false)
