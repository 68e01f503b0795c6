#include "onednn.h"

#include <dlfcn.h>

#include <functional>
#include <mutex>

#include "threads.h"

namespace onednn {

#define ONEDNN_DEFINE(name, result, ...) result (*name)(__VA_ARGS__) = nullptr;
ONEDNN_FUNCTIONS(ONEDNN_DEFINE)
#undef ONEDNN_DEFINE

dnnl_engine* engine = nullptr;
dnnl_stream* stream = nullptr;

namespace {

// oneDNN's dnnl::threadpool_interop::threadpool_iface, member for member: MindSpore's build of the
// library brings no threads of its own.
class Threads {
   public:
    virtual int get_num_threads() const { return thread_count(); }
    virtual bool get_in_parallel() const { return false; }
    virtual void parallel_for(int n, const std::function<void(int, int)>& body) {
        ::parallel_for(n, [&](int64_t i) { body(int(i), n); });
    }
    virtual uint64_t get_flags() const { return 0; }  // parallel_for returns when all is done
    virtual void wait() {}
    virtual ~Threads() = default;
} threads;

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

int open(const char* path) {
    if (!processor_is_the_one_built_for()) return 1;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 2;
#define ONEDNN_LOAD(name, result, ...)                                                \
    name = reinterpret_cast<result (*)(__VA_ARGS__)>(dlsym(library, "dnnl_" #name)); \
    if (!name) return 3;
    ONEDNN_FUNCTIONS(ONEDNN_LOAD)
#undef ONEDNN_LOAD
    if (engine_create(&engine, cpu, 0)) return 4;
    return threadpool_interop_stream_create(&stream, engine, &threads) ? 4 : 0;
}

}  // namespace

}  // namespace onednn

// Readies the kernels; `path` is oneDNN's shared library, the rest are functions of threads.h, for
// libraries that have none of their own. 0 if the kernels can be used in this process. Any thread
// may call at any time: once they are ready, nothing changes.
extern "C" int open_kernels(const char* path, const void*, const void*) {
    static std::mutex mutex;
    static bool ready = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (ready) return 0;
    const int status = onednn::open(path);
    ready = status == 0;
    return status;
}
