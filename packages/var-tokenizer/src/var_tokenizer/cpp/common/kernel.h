// What every kernel of this library shares: how MindSpore calls it, and what it returns.
#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>

#include "threads.h"

// What a kernel returns. All but `done` make MindSpore raise an error that names the kernel.
enum Status { done = 0, failed = 1, out_of_memory = 2, unfit_arrays = 3 };

// Runs a kernel; what it throws becomes a status, because MindSpore, in C, can catch nothing.
template <typename Work>
int status_of(Work work) {
    try {
        work();
        return done;
    } catch (const std::bad_alloc&) {
        return out_of_memory;
    } catch (const std::invalid_argument&) {
        return unfit_arrays;
    } catch (...) {
        return failed;
    }
}

// Ends a kernel whose arrays do not fit each other before it writes anything.
inline void expect(bool fits) {
    if (!fits) throw std::invalid_argument("arrays do not fit each other");
}

// Defines a function with the signature of ops.Custom(func_type="aot"): inputs come first in
// `params`, then outputs, all of them dense; `shapes[i]` has `ndims[i]` entries. The body returns
// nothing and throws where it fails.
#define KERNEL(name)                                                                           \
    static void name##_body(void** params, int* ndims, int64_t** shapes);                      \
    extern "C" int name(int, void** params, int* ndims, int64_t** shapes, const char**, void*, \
                        void*) {                                                               \
        return status_of([&] { name##_body(params, ndims, shapes); });                         \
    }                                                                                          \
    static void name##_body([[maybe_unused]] void** params, [[maybe_unused]] int* ndims,       \
                            [[maybe_unused]] int64_t** shapes)

inline float* floats(void** params, int i) { return static_cast<float*>(params[i]); }
