// What every kernel of this library shares: how MindSpore calls it, and its threads.
#pragma once

#include <cstdint>
#include <type_traits>

// The signature of ops.Custom(func_type="aot"): inputs come first in `params`, then outputs, all
// of them dense; `shapes[i]` has `ndims[i]` entries. 0 means success.
#define KERNEL(name)                                                                         \
    extern "C" int name([[maybe_unused]] int nparam, [[maybe_unused]] void** params,         \
                        [[maybe_unused]] int* ndims, [[maybe_unused]] int64_t** shapes,      \
                        [[maybe_unused]] const char** dtypes, [[maybe_unused]] void* stream, \
                        [[maybe_unused]] void* extra)

inline float* floats(void** params, int i) { return static_cast<float*>(params[i]); }
inline int32_t* ints(void** params, int i) { return static_cast<int32_t*>(params[i]); }

// The threads are var_tokenizer's (its threads.h); open_kernels is told where to find them.
extern int (*thread_count)();
extern void (*run_jobs)(int64_t jobs, void (*work)(void* context, int64_t job), void* context);

// work(i) for every i of 0 .. jobs - 1, on whichever thread is free
template <typename Work>
void parallel_for(int64_t jobs, Work&& work) {
    using Plain = std::remove_reference_t<Work>;
    run_jobs(
        jobs, [](void* context, int64_t job) { (*static_cast<Plain*>(context))(job); },
        const_cast<std::remove_const_t<Plain>*>(&work));
}
