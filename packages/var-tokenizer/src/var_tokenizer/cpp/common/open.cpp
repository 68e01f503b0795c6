#include <mutex>

#include "kernel.h"
#include "onednn.h"

int (*thread_count)() = nullptr;
void (*run_jobs)(int64_t, void (*)(void*, int64_t), void*) = nullptr;

namespace {

bool processor_is_the_one_built_for() {
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

// Readies the kernels (see var_tokenizer.KernelLibrary); 0 if they can be used in this process. Any
// thread may call at any time: once they are ready, nothing changes.
extern "C" int open_kernels(const char* onednn, const void* count, const void* run) {
    static std::mutex mutex;
    static bool ready = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (ready) return 0;
    if (!processor_is_the_one_built_for()) return 1;
    thread_count = reinterpret_cast<int (*)()>(const_cast<void*>(count));
    run_jobs = reinterpret_cast<void (*)(int64_t, void (*)(void*, int64_t), void*)>(
        const_cast<void*>(run));
    ready = open_onednn(onednn);
    return ready ? 0 : 2;
}
