// Readies a library; var_tokenizer/common/kernels.py calls it.

#include <mutex>

#include "kernel.h"
#include "onednn.h"
#include "threads.h"

ThreadPool thread_pool;

namespace {

// Whether the processor has the instructions that the compiler was told to use.
bool processor_fits() {
    __builtin_cpu_init();
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2")) return false;
#endif
#ifdef __FMA__
    if (!__builtin_cpu_supports("fma")) return false;
#endif
#ifdef __AVX512F__
    if (!__builtin_cpu_supports("avx512f")) return false;
#endif
#ifdef __AVX512VL__
    if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw"))
        return false;
#endif
    return true;
}

}  // namespace

// 0 if the kernels can be used in this process; 1 if the processor does not suit them, 2 if oneDNN
// does not. `path` is oneDNN's library, the rest is a ThreadPool. Any thread may call at any time:
// once the kernels are ready, nothing changes.
EXPORT int open_kernels(const char* path, decltype(ThreadPool::thread_count) thread_count,
                        decltype(ThreadPool::run_jobs) run_jobs) {
    static std::mutex mutex;
    static bool ready = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (ready) return 0;
    if (!processor_fits()) return 1;
    thread_pool = {thread_count, run_jobs};
    ready = onednn::open(path);
    return ready ? 0 : 2;
}
