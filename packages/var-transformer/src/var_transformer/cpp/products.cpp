#include "onednn.h"

#include <dlfcn.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernel.h"

// MindSpore ships the library without its headers; names and values are those of oneDNN 3.
struct dnnl_engine;
struct dnnl_stream;
struct dnnl_memory_desc;
struct dnnl_memory;
struct dnnl_primitive_desc;
struct dnnl_primitive;
struct dnnl_primitive_attr;

namespace {

struct Argument {
    int index;
    dnnl_memory* memory;
};
enum { cpu = 1, f32 = 3, user_scratchpad = 1, query_scratchpad = 136 };
enum { arg_src = 1, arg_dst = 17, arg_weights = 33, arg_bias = 41, arg_scratchpad = 80 };

// name, parameters
#define ONEDNN_FUNCTIONS(F)                                                                        \
    F(engine_create, dnnl_engine**, int, size_t)                                                   \
    F(threadpool_interop_stream_create, dnnl_stream**, dnnl_engine*, void*)                        \
    F(threadpool_interop_get_max_concurrency, int*)                                                \
    F(threadpool_interop_set_max_concurrency, int)                                                 \
    F(memory_desc_create_with_strides, dnnl_memory_desc**, int, const int64_t*, int,               \
      const int64_t*)                                                                              \
    F(memory_desc_destroy, dnnl_memory_desc*)                                                      \
    F(memory_create, dnnl_memory**, const dnnl_memory_desc*, dnnl_engine*, void*)                  \
    F(memory_destroy, dnnl_memory*)                                                                \
    F(memory_set_data_handle, dnnl_memory*, void*)                                                 \
    F(primitive_attr_create, dnnl_primitive_attr**)                                                \
    F(primitive_attr_set_scratchpad_mode, dnnl_primitive_attr*, int)                               \
    F(primitive_attr_destroy, dnnl_primitive_attr*)                                                \
    F(matmul_primitive_desc_create, dnnl_primitive_desc**, dnnl_engine*, const dnnl_memory_desc*,  \
      const dnnl_memory_desc*, const dnnl_memory_desc*, const dnnl_memory_desc*,                   \
      const dnnl_primitive_attr*)                                                                  \
    F(primitive_desc_destroy, dnnl_primitive_desc*)                                                \
    F(primitive_create, dnnl_primitive**, const dnnl_primitive_desc*)                              \
    F(primitive_execute, const dnnl_primitive*, dnnl_stream*, int, const Argument*)                \
    F(primitive_destroy, dnnl_primitive*)

#define ONEDNN_DEFINE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
ONEDNN_FUNCTIONS(ONEDNN_DEFINE)
#undef ONEDNN_DEFINE
const dnnl_memory_desc* (*primitive_desc_query_md)(const dnnl_primitive_desc*, int, int) = nullptr;
size_t (*memory_desc_get_size)(const dnnl_memory_desc*) = nullptr;

dnnl_engine* engine = nullptr;
dnnl_stream* stream = nullptr;

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

template <typename Function>
bool look_up(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

void check(int status) {
    if (status) throw std::runtime_error("oneDNN refused");
}

template <typename T, int (*&destroy)(T*)>
struct Destroy {
    void operator()(T* object) const { destroy(object); }
};
using Desc = std::unique_ptr<dnnl_memory_desc, Destroy<dnnl_memory_desc, memory_desc_destroy>>;
using Memory = std::unique_ptr<dnnl_memory, Destroy<dnnl_memory, memory_destroy>>;
using Attributes =
    std::unique_ptr<dnnl_primitive_attr, Destroy<dnnl_primitive_attr, primitive_attr_destroy>>;
using PrimitiveDesc =
    std::unique_ptr<dnnl_primitive_desc, Destroy<dnnl_primitive_desc, primitive_desc_destroy>>;
using Primitive = std::unique_ptr<dnnl_primitive, Destroy<dnnl_primitive, primitive_destroy>>;

Desc description(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    const int64_t sizes[2] = {rows, columns}, strides[2] = {row, column};
    dnnl_memory_desc* made;
    check(memory_desc_create_with_strides(&made, 2, sizes, f32, strides));
    return Desc(made);
}

Memory memory_of(const dnnl_memory_desc* what) {
    dnnl_memory* made;
    check(memory_create(&made, what, engine, nullptr));
    return Memory(made);
}

// Does `work` while oneDNN plans for all threads of kernel.h in this thread. Before and after, it plans
// for as many as MindSpore says.
template <typename Work>
void on_all_threads(Work work) {
    int before;
    check(threadpool_interop_get_max_concurrency(&before));
    check(threadpool_interop_set_max_concurrency(thread_count()));
    try {
        work();
    } catch (...) {
        threadpool_interop_set_max_concurrency(before);
        throw;
    }
    check(threadpool_interop_set_max_concurrency(before));
}

// Memory of oneDNN during a product, at a multiple of 64 bytes
char* scratch(size_t size) {
    static std::vector<char>& memory = *new std::vector<char>;
    if (memory.size() < size + 64) memory.resize(size + 64);
    return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
}

// What oneDNN compiles for sizes and orders; kept, because a model has few of them.
class Product {
   public:
    Product(int64_t m, int64_t n, int64_t depth, Matrix left, Matrix right, bool biased) {
        const Desc a = description(m, depth, left.row, left.column);
        const Desc b = description(depth, n, right.row, right.column);
        const Desc bias = biased ? description(1, n, n, 1) : nullptr;
        const Desc c = description(m, n, n, 1);
        dnnl_primitive_attr* raw;
        check(primitive_attr_create(&raw));
        const Attributes attributes(raw);
        check(primitive_attr_set_scratchpad_mode(raw, user_scratchpad));
        dnnl_primitive_desc* chosen;
        check(matmul_primitive_desc_create(&chosen, engine, a.get(), b.get(), bias.get(), c.get(),
                                           raw));
        const PrimitiveDesc desc(chosen);
        const dnnl_memory_desc* scratchpad = primitive_desc_query_md(chosen, query_scratchpad, 0);
        check(!scratchpad);
        scratchpad_size_ = memory_desc_get_size(scratchpad);
        a_ = memory_of(a.get()), b_ = memory_of(b.get()), c_ = memory_of(c.get());
        if (biased) bias_ = memory_of(bias.get());
        scratchpad_ = memory_of(scratchpad);
        dnnl_primitive* made;
        check(primitive_create(&made, chosen));
        primitive_.reset(made);
    }

    void run(const float* a, const float* b, const float* bias, float* c) const {
        Argument arguments[5];
        int count = 0;
        const auto add = [&](int index, const Memory& memory, const void* data) {
            check(memory_set_data_handle(memory.get(), const_cast<void*>(data)));
            arguments[count++] = {index, memory.get()};
        };
        add(arg_src, a_, a);
        add(arg_weights, b_, b);
        add(arg_dst, c_, c);
        if (bias_) add(arg_bias, bias_, bias);
        if (scratchpad_size_) add(arg_scratchpad, scratchpad_, scratch(scratchpad_size_));
        check(primitive_execute(primitive_.get(), stream, count, arguments));
    }

   private:
    Memory a_, b_, bias_, c_, scratchpad_;
    Primitive primitive_;
    size_t scratchpad_size_;
};

}  // namespace

bool open_onednn(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    bool found = look_up(library, "dnnl_primitive_desc_query_md", primitive_desc_query_md) &&
                 look_up(library, "dnnl_memory_desc_get_size", memory_desc_get_size);
#define ONEDNN_LOOK_UP(name, ...) found = found && look_up(library, "dnnl_" #name, name);
    ONEDNN_FUNCTIONS(ONEDNN_LOOK_UP)
#undef ONEDNN_LOOK_UP
    return found && !engine_create(&engine, cpu, 0) &&
           !threadpool_interop_stream_create(&stream, engine, &threads);
}

void matrix_product(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, const float* bias,
                    float* c) {
    if (m == 0 || n == 0) return;
    if (depth == 0) {  // oneDNN writes nothing
        for (int64_t i = 0; i < m * n; ++i) c[i] = bias ? bias[i % n] : 0;
        return;
    }
    // the products that are kept, with their arguments and the scratchpad, serve all threads
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    constexpr size_t most = 1024;  // sizes; beyond it, callers vary a dimension without end
    static auto& known = *new std::map<std::array<int64_t, 6>, Product>;  // never destroyed: a
    if (known.size() > most) known.clear();  // thread may be at work when the process ends
    const std::array<int64_t, 6> key{m, n, depth, a.column == 1, b.column == 1, bias != nullptr};
    on_all_threads([&] {
        known.try_emplace(key, m, n, depth, a, b, bias).first->second.run(a.data, b.data, bias, c);
    });
}
