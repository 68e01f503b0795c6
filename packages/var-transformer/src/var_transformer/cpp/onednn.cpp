#include "onednn.h"

#include <dlfcn.h>

#include <array>
#include <functional>
#include <map>
#include <mutex>
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
    F(memory_create, dnnl_memory**, const dnnl_memory_desc*, dnnl_engine*, void*)                  \
    F(memory_destroy, dnnl_memory*)                                                                \
    F(primitive_attr_create, dnnl_primitive_attr**)                                                \
    F(primitive_attr_set_scratchpad_mode, dnnl_primitive_attr*, int)                               \
    F(matmul_primitive_desc_create, dnnl_primitive_desc**, dnnl_engine*, const dnnl_memory_desc*,  \
      const dnnl_memory_desc*, const dnnl_memory_desc*, const dnnl_memory_desc*,                   \
      const dnnl_primitive_attr*)                                                                  \
    F(primitive_create, dnnl_primitive**, const dnnl_primitive_desc*)                              \
    F(primitive_execute, const dnnl_primitive*, dnnl_stream*, int, const Argument*)

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

dnnl_memory_desc* description(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    const int64_t sizes[2] = {rows, columns}, strides[2] = {row, column};
    dnnl_memory_desc* made = nullptr;
    memory_desc_create_with_strides(&made, 2, sizes, f32, strides);
    return made;
}

// What oneDNN compiles for sizes and orders; kept, because a model has few of them.
struct Product {
    dnnl_memory_desc *a, *b, *bias, *c;
    const dnnl_memory_desc* scratchpad;
    size_t scratchpad_size;
    dnnl_primitive* primitive = nullptr;

    Product(int64_t m, int64_t n, int64_t depth, Matrix left, Matrix right, bool biased)
        : a(description(m, depth, left.row, left.column)),
          b(description(depth, n, right.row, right.column)),
          bias(biased ? description(1, n, n, 1) : nullptr),
          c(description(m, n, n, 1)) {
        dnnl_primitive_attr* attributes = nullptr;
        primitive_attr_create(&attributes);
        primitive_attr_set_scratchpad_mode(attributes, user_scratchpad);
        dnnl_primitive_desc* chosen = nullptr;
        matmul_primitive_desc_create(&chosen, engine, a, b, bias, c, attributes);
        scratchpad = primitive_desc_query_md(chosen, query_scratchpad, 0);
        scratchpad_size = memory_desc_get_size(scratchpad);
        primitive_create(&primitive, chosen);
    }
};

const Product& product_for(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, bool biased) {
    static std::mutex guard;
    static std::map<std::array<int64_t, 6>, Product> known;
    std::lock_guard<std::mutex> lock(guard);
    const std::array<int64_t, 6> key{m, n, depth, a.column == 1, b.column == 1, biased};
    auto found = known.find(key);
    if (found == known.end())
        found = known.emplace(key, Product(m, n, depth, a, b, biased)).first;
    return found->second;
}

char* scratch(size_t size) {
    thread_local std::vector<char> memory;
    if (memory.size() < size + 64) memory.resize(size + 64);
    return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
}

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
    int concurrency;  // of the calling thread, which is MindSpore's
    threadpool_interop_get_max_concurrency(&concurrency);
    threadpool_interop_set_max_concurrency(thread_count());
    const Product& product = product_for(m, n, depth, a, b, bias != nullptr);
    Argument arguments[5];
    int count = 0;
    const auto add = [&](int index, const dnnl_memory_desc* what, const void* data) {
        arguments[count].index = index;
        memory_create(&arguments[count++].memory, what, engine, const_cast<void*>(data));
    };
    add(arg_src, product.a, a.data);
    add(arg_weights, product.b, b.data);
    add(arg_dst, product.c, c);
    if (bias) add(arg_bias, product.bias, bias);
    if (product.scratchpad_size)
        add(arg_scratchpad, product.scratchpad, scratch(product.scratchpad_size));
    primitive_execute(product.primitive, stream, count, arguments);
    for (int i = 0; i < count; ++i) memory_destroy(arguments[i].memory);
    threadpool_interop_set_max_concurrency(concurrency);
}
