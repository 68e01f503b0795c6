#include "onednn.h"

#include <dlfcn.h>

#include <functional>

namespace onednn {

#define ONEDNN_DEFINE(name, result, ...) result (*name)(__VA_ARGS__) = nullptr;
ONEDNN_FUNCTIONS(ONEDNN_DEFINE)
#undef ONEDNN_DEFINE

bool compiles = false;
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

// So many of them
class Some : public Threads {
   public:
    explicit Some(int count) : count_(count) {}
    int get_num_threads() const override { return count_; }

   private:
    int count_;
};

int (*sgemm)(char a_order, char b_order, int64_t m, int64_t n, int64_t depth, float alpha,
             const float* a, int64_t a_step, const float* b, int64_t b_step, float beta, float* c,
             int64_t c_step, void* threads) = nullptr;

}  // namespace

bool open(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    sgemm = reinterpret_cast<decltype(sgemm)>(dlsym(library, "dnnl_threadpool_interop_sgemm"));
    bool all = true;
#define ONEDNN_LOOK_UP(name, result, ...)                                            \
    name = reinterpret_cast<result (*)(__VA_ARGS__)>(dlsym(library, "dnnl_" #name)); \
    all = all && name;
    ONEDNN_FUNCTIONS(ONEDNN_LOOK_UP)
#undef ONEDNN_LOOK_UP
    compiles = all;
    if (!compiles) return sgemm;
    return !engine_create(&engine, cpu, 0) &&
           !threadpool_interop_stream_create(&stream, engine, &threads);
}

void multiply(int64_t m, int64_t n, int64_t depth, Rows a, Rows b, float beta, float* c) {
    Some some(threads_for(m * n * depth));
    check(sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', m, n, depth, 1, a.data, a.step,
                b.data, b.step, beta, c, n, &some));
}

Desc strided(std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides) {
    dnnl_memory_desc* desc;
    check(memory_desc_create_with_strides(&desc, int(sizes.size()), sizes.begin(), f32,
                                          strides.begin()));
    return Desc(desc);
}

Memory memory_of(const dnnl_memory_desc* desc) {
    dnnl_memory* memory;
    check(memory_create(&memory, desc, engine, nullptr));
    return Memory(memory);
}

Primitive primitive_of(const dnnl_primitive_desc* desc) {
    dnnl_primitive* primitive;
    check(primitive_create(&primitive, desc));
    return Primitive(primitive);
}

Attr with_scratchpad() {
    dnnl_primitive_attr* raw;
    check(primitive_attr_create(&raw));
    Attr attr(raw);
    check(primitive_attr_set_scratchpad_mode(raw, user_scratchpad));
    return attr;
}

void execute(const Primitive& primitive, const std::vector<Argument>& arguments) {
    check(primitive_execute(primitive.get(), stream, int(arguments.size()), arguments.data()));
}

}  // namespace onednn
