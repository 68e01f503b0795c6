// Readies a library; var_tokenizer/common/kernels.py calls it.

#include <mutex>

#include "kernel.h"
#include "onednn.h"
#include "threads.h"

ThreadPool thread_pool;
int chosen_variant = 0;

namespace {

#define NAME_VARIANT(_, variant) #variant,
constexpr const char* names[] = {FOR_EACH_VARIANT(NAME_VARIANT, )};
constexpr int count = sizeof names / sizeof *names;

// Whether the processor, and the system with it, has the features that building.py asks for.
bool has_variant(int variant) {
#ifdef __x86_64__
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    const bool has[] = {true, v3, v4};
    static_assert(sizeof has / sizeof *has == count);
    return has[variant];
#else
    static_assert(count == 1);
    return variant == 0;
#endif
}

}  // namespace

// The name of variant i, lowest first; null after the last.
EXPORT const char* kernel_variant(int i) { return i >= 0 && i < count ? names[i] : nullptr; }

// 1 if the processor can run variant i, else 0.
EXPORT int processor_has(int i) { return i >= 0 && i < count && has_variant(i); }

// What building.py calls the digest of the sources.
EXPORT const char* kernel_sources() { return SOURCES; }

// 0 if the kernels can be used in this process; 1 if the processor lacks the variant, 2 if oneDNN
// does not load. `path` is oneDNN's library, the rest is a ThreadPool. Any thread may call at any
// time: once the kernels are ready, nothing changes.
EXPORT int open_kernels(int variant, const char* path,
                        decltype(ThreadPool::thread_count) thread_count,
                        decltype(ThreadPool::run_jobs) run_jobs) {
    static std::mutex mutex;
    static bool ready = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (ready) return 0;
    if (!processor_has(variant)) return 1;
    chosen_variant = variant;
    thread_pool = {thread_count, run_jobs};
    ready = onednn::open(path);
    return ready ? 0 : 2;
}
