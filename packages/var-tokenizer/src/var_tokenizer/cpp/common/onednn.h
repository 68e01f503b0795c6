// The part of oneDNN's C interface that the kernels need (https://uxlfoundation.github.io/oneDNN).
//
// MindSpore ships the library without its headers. Functions are looked up at run time, so the
// build needs neither. Names and values are those of oneDNN 3. MindSpore before 2.9 ships oneDNN 2,
// of which only `multiply` is used: the rest has another interface there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <vector>

#include "threads.h"

struct dnnl_engine;
struct dnnl_stream;
struct dnnl_memory_desc;
struct dnnl_memory;
struct dnnl_primitive_desc;
struct dnnl_primitive;
struct dnnl_primitive_attr;

namespace onednn {

struct Argument {
    int index;
    dnnl_memory* memory;
};

enum {
    cpu = 1,
    f32 = 3,
    any = 1,
    forward_training = 64,
    convolution_direct = 1,
    user_scratchpad = 1
};
enum { query_weights = 131, query_diff_weights = 132, query_scratchpad = 136 };
enum {
    arg_src = 1,
    arg_dst = 17,
    arg_weights = 33,
    arg_bias = 41,
    arg_scratchpad = 80,
    arg_diff_src = 129,
    arg_diff_dst = 145,
    arg_diff_weights = 161,
    arg_diff_bias = 169,
};

// name, result, parameters
#define ONEDNN_FUNCTIONS(F)                                                                       \
    F(engine_create, int, dnnl_engine**, int, size_t)                                             \
    F(threadpool_interop_stream_create, int, dnnl_stream**, dnnl_engine*, void*)                  \
    F(threadpool_interop_get_max_concurrency, int, int*)                                          \
    F(threadpool_interop_set_max_concurrency, int, int)                                           \
    F(memory_desc_create_with_strides, int, dnnl_memory_desc**, int, const int64_t*, int,         \
      const int64_t*)                                                                             \
    F(memory_desc_create_with_tag, int, dnnl_memory_desc**, int, const int64_t*, int, int)        \
    F(memory_desc_destroy, int, dnnl_memory_desc*)                                                \
    F(memory_desc_equal, int, const dnnl_memory_desc*, const dnnl_memory_desc*)                   \
    F(memory_desc_get_size, size_t, const dnnl_memory_desc*)                                      \
    F(memory_create, int, dnnl_memory**, const dnnl_memory_desc*, dnnl_engine*, void*)            \
    F(memory_destroy, int, dnnl_memory*)                                                          \
    F(memory_set_data_handle, int, dnnl_memory*, void*)                                           \
    F(primitive_attr_create, int, dnnl_primitive_attr**)                                          \
    F(primitive_attr_set_scratchpad_mode, int, dnnl_primitive_attr*, int)                         \
    F(primitive_attr_destroy, int, dnnl_primitive_attr*)                                          \
    F(convolution_forward_primitive_desc_create, int, dnnl_primitive_desc**, dnnl_engine*, int,   \
      int, const dnnl_memory_desc*, const dnnl_memory_desc*, const dnnl_memory_desc*,             \
      const dnnl_memory_desc*, const int64_t*, const int64_t*, const int64_t*, const int64_t*,    \
      const dnnl_primitive_attr*)                                                                 \
    F(convolution_backward_data_primitive_desc_create, int, dnnl_primitive_desc**, dnnl_engine*,  \
      int, const dnnl_memory_desc*, const dnnl_memory_desc*, const dnnl_memory_desc*,             \
      const int64_t*, const int64_t*, const int64_t*, const int64_t*, const dnnl_primitive_desc*, \
      const dnnl_primitive_attr*)                                                                 \
    F(convolution_backward_weights_primitive_desc_create, int, dnnl_primitive_desc**,             \
      dnnl_engine*, int, const dnnl_memory_desc*, const dnnl_memory_desc*,                        \
      const dnnl_memory_desc*, const dnnl_memory_desc*, const int64_t*, const int64_t*,           \
      const int64_t*, const int64_t*, const dnnl_primitive_desc*, const dnnl_primitive_attr*)     \
    F(matmul_primitive_desc_create, int, dnnl_primitive_desc**, dnnl_engine*,                     \
      const dnnl_memory_desc*, const dnnl_memory_desc*, const dnnl_memory_desc*,                  \
      const dnnl_memory_desc*, const dnnl_primitive_attr*)                                        \
    F(reorder_primitive_desc_create, int, dnnl_primitive_desc**, const dnnl_memory_desc*,         \
      dnnl_engine*, const dnnl_memory_desc*, dnnl_engine*, const dnnl_primitive_attr*)            \
    F(primitive_desc_query_md, const dnnl_memory_desc*, const dnnl_primitive_desc*, int, int)     \
    F(primitive_desc_destroy, int, dnnl_primitive_desc*)                                          \
    F(primitive_create, int, dnnl_primitive**, const dnnl_primitive_desc*)                        \
    F(primitive_execute, int, const dnnl_primitive*, dnnl_stream*, int, const Argument*)          \
    F(primitive_destroy, int, dnnl_primitive*)

#define ONEDNN_DECLARE(name, result, ...) extern result (*name)(__VA_ARGS__);
ONEDNN_FUNCTIONS(ONEDNN_DECLARE)
#undef ONEDNN_DECLARE

extern dnnl_engine* engine;
extern dnnl_stream* stream;  // its work runs on the threads of threads.h

// Looks up the functions in the shared library at `path`; false if one fails, or if even `multiply`
// is missing.
bool open(const char* path);

// Whether it is oneDNN 3: without it, only `multiply` can be called.
extern bool compiles;

// A matrix row by row, or column by column if transposed; these are `step` floats apart.
struct Rows {
    const float* data;
    int64_t step;
    bool transposed = false;
};

// c (m x n, row by row) = a (m x depth) b (depth x n) + beta c; with beta 0, c is not read.
void multiply(int64_t m, int64_t n, int64_t depth, Rows a, Rows b, float beta, float* c);

inline void check(int status) {
    if (status) throw std::runtime_error("oneDNN refused");
}

template <typename T, int (*&destroy)(T*)>
struct Destroy {
    void operator()(T* object) const { destroy(object); }
};
using Desc = std::unique_ptr<dnnl_memory_desc, Destroy<dnnl_memory_desc, memory_desc_destroy>>;
using Memory = std::unique_ptr<dnnl_memory, Destroy<dnnl_memory, memory_destroy>>;
using Attr =
    std::unique_ptr<dnnl_primitive_attr, Destroy<dnnl_primitive_attr, primitive_attr_destroy>>;
using PrimitiveDesc =
    std::unique_ptr<dnnl_primitive_desc, Destroy<dnnl_primitive_desc, primitive_desc_destroy>>;
using Primitive = std::unique_ptr<dnnl_primitive, Destroy<dnnl_primitive, primitive_destroy>>;

Desc strided(std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides);
Memory memory_of(const dnnl_memory_desc* desc);
Primitive primitive_of(const dnnl_primitive_desc* desc);
Attr with_scratchpad();  // a primitive's attributes: the caller brings its scratchpad
void execute(const Primitive& primitive, const std::vector<Argument>& arguments);

// Does `work` while oneDNN plans for so many threads of threads.h in this thread. Before and after,
// it plans for as many as MindSpore says.
template <typename Work>
void on_threads(int count, Work work) {
    int before;
    check(threadpool_interop_get_max_concurrency(&before));
    check(threadpool_interop_set_max_concurrency(count));
    try {
        work();
    } catch (...) {
        threadpool_interop_set_max_concurrency(before);
        throw;
    }
    check(threadpool_interop_set_max_concurrency(before));
}

}  // namespace onednn
