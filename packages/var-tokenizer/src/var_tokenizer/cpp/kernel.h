// What every kernel of this library shares: how MindSpore calls it.
#pragma once

#include <cstdint>

#include "threads.h"

// The signature of ops.Custom(func_type="aot"): inputs come first in `params`, then outputs, all
// of them dense; `shapes[i]` has `ndims[i]` entries. 0 means success.
#define KERNEL(name)                                                                        \
    extern "C" int name([[maybe_unused]] int nparam, [[maybe_unused]] void** params,        \
                        [[maybe_unused]] int* ndims, [[maybe_unused]] int64_t** shapes,     \
                        [[maybe_unused]] const char** dtypes, [[maybe_unused]] void* stream, \
                        [[maybe_unused]] void* extra)

inline float* floats(void** params, int i) { return static_cast<float*>(params[i]); }
