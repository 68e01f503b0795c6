// Convolutions of channels-last maps by oneDNN, forward and backward.

#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "kernel.h"
#include "onednn.h"

namespace {

using namespace onednn;

enum Pass { forward, backward_data, backward_weights };

struct Shape {
    int64_t b, y, x, c, o, kernel, stride, before, out_y, out_x;
    auto key(Pass pass) const {
        return std::array<int64_t, 11>{pass, b, y, x, c, o, kernel, stride, before, out_y, out_x};
    }
};

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

struct Failure {};

void check(int status) {
    if (status) throw Failure{};
}

// Memory that all primitives share, as large as the largest has asked for.
class Buffer {
   public:
    void* get(size_t size) {
        if (size > size_) {
            std::free(data_);
            size_ = (size + 63) / 64 * 64;
            data_ = std::aligned_alloc(64, size_);
            if (!data_) {
                size_ = 0;
                throw Failure{};
            }
        }
        return data_;
    }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

Desc strided(std::initializer_list<int64_t> dims, std::initializer_list<int64_t> strides) {
    dnnl_memory_desc* desc;
    check(memory_desc_create_with_strides(&desc, int(dims.size()), dims.begin(), f32,
                                          strides.begin()));
    return Desc(desc);
}

Desc preferred(std::initializer_list<int64_t> dims) {
    dnnl_memory_desc* desc;
    check(memory_desc_create_with_tag(&desc, int(dims.size()), dims.begin(), f32, any));
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

// One pass of a convolution of one shape. oneDNN chooses the layout of the weights; maps and the
// weights outside are plain.
class Convolution {
   public:
    Convolution(Pass pass, const Shape& s) : pass_(pass) {
        int concurrency;
        check(threadpool_interop_get_max_concurrency(&concurrency));
        check(threadpool_interop_set_max_concurrency(thread_count()));
        create(s);
        check(threadpool_interop_set_max_concurrency(concurrency));
    }

    // src, weights, bias, dst, or their gradients, as the pass reads or writes them
    void run(void* src, void* weights, void* bias, void* dst) {
        static Buffer reordered, scratchpad;
        check(memory_set_data_handle(src_.get(), src));
        check(memory_set_data_handle(plain_.get(), weights));
        check(memory_set_data_handle(bias_.get(), bias));
        check(memory_set_data_handle(dst_.get(), dst));
        check(memory_set_data_handle(scratchpad_.get(), scratchpad.get(scratchpad_size_)));
        void* blocked = reorder_ ? reordered.get(weights_size_) : weights;
        check(memory_set_data_handle(weights_.get(), blocked));
        if (reorder_ && pass_ != backward_weights) reorder(plain_.get(), weights_.get());
        if (pass_ == forward) {
            execute({{arg_src, src_.get()},
                     {arg_weights, weights_.get()},
                     {arg_bias, bias_.get()},
                     {arg_dst, dst_.get()},
                     {arg_scratchpad, scratchpad_.get()}});
        } else if (pass_ == backward_data) {
            execute({{arg_diff_src, src_.get()},
                     {arg_weights, weights_.get()},
                     {arg_diff_dst, dst_.get()},
                     {arg_scratchpad, scratchpad_.get()}});
        } else {
            execute({{arg_src, src_.get()},
                     {arg_diff_weights, weights_.get()},
                     {arg_diff_bias, bias_.get()},
                     {arg_diff_dst, dst_.get()},
                     {arg_scratchpad, scratchpad_.get()}});
            if (reorder_) reorder(weights_.get(), plain_.get());
        }
    }

   private:
    void create(const Shape& s) {
        const int64_t k = s.kernel;
        Desc src = strided({s.b, s.c, s.y, s.x}, {s.y * s.x * s.c, 1, s.x * s.c, s.c});
        Desc dst = strided({s.b, s.o, s.out_y, s.out_x},
                           {s.out_y * s.out_x * s.o, 1, s.out_x * s.o, s.o});
        Desc plain = strided({s.o, s.c, k, k}, {k * k * s.c, 1, k * s.c, s.c});
        Desc bias = strided({s.o}, {1});
        Desc weights = preferred({s.o, s.c, k, k});
        const int64_t stride[] = {s.stride, s.stride}, dilation[] = {0, 0};
        const int64_t before[] = {s.before, s.before};
        const int64_t after[] = {(s.out_y - 1) * s.stride + k - s.before - s.y,
                                 (s.out_x - 1) * s.stride + k - s.before - s.x};
        dnnl_primitive_attr* raw;
        check(primitive_attr_create(&raw));
        Attr attr(raw);
        check(primitive_attr_set_scratchpad_mode(raw, user_scratchpad));

        dnnl_primitive_desc* created;
        check(convolution_forward_primitive_desc_create(
            &created, engine, forward_training, direct, src.get(), weights.get(), bias.get(),
            dst.get(), stride, dilation, before, after, raw));
        PrimitiveDesc desc(created);
        if (pass_ == backward_data) {
            check(convolution_backward_data_primitive_desc_create(
                &created, engine, direct, src.get(), weights.get(), dst.get(), stride, dilation,
                before, after, desc.get(), raw));
            desc.reset(created);
        } else if (pass_ == backward_weights) {
            check(convolution_backward_weights_primitive_desc_create(
                &created, engine, direct, src.get(), weights.get(), bias.get(), dst.get(), stride,
                dilation, before, after, desc.get(), raw));
            desc.reset(created);
        }
        primitive_ = primitive_of(desc.get());

        const bool writes_weights = pass_ == backward_weights;
        const dnnl_memory_desc* chosen = primitive_desc_query_md(
            desc.get(), writes_weights ? query_diff_weights : query_weights, 0);
        const dnnl_memory_desc* scratch = primitive_desc_query_md(desc.get(), query_scratchpad, 0);
        weights_size_ = memory_desc_get_size(chosen);
        scratchpad_size_ = memory_desc_get_size(scratch);
        src_ = memory_of(src.get());
        dst_ = memory_of(dst.get());
        bias_ = memory_of(bias.get());
        plain_ = memory_of(plain.get());
        weights_ = memory_of(chosen);
        scratchpad_ = memory_of(scratch);
        if (!memory_desc_equal(chosen, plain.get())) {
            const dnnl_memory_desc* from = writes_weights ? chosen : plain.get();
            const dnnl_memory_desc* to = writes_weights ? plain.get() : chosen;
            check(reorder_primitive_desc_create(&created, from, engine, to, engine, nullptr));
            reorder_ = primitive_of(PrimitiveDesc(created).get());
        }
    }

    void reorder(dnnl_memory* from, dnnl_memory* to) {
        const Argument arguments[] = {{arg_src, from}, {arg_dst, to}};
        check(primitive_execute(reorder_.get(), stream, 2, arguments));
    }

    void execute(std::initializer_list<Argument> arguments) {
        check(primitive_execute(primitive_.get(), stream, int(arguments.size()),
                                arguments.begin()));
    }

    Pass pass_;
    Primitive primitive_, reorder_;
    Memory src_, weights_, plain_, bias_, dst_, scratchpad_;
    size_t weights_size_ = 0, scratchpad_size_ = 0;
};

int run(Pass pass, const Shape& shape, void* src, void* weights, void* bias, void* dst) {
    constexpr size_t most = 1024;  // shapes; beyond it, callers vary a dimension without end
    static std::map<std::array<int64_t, 11>, Convolution> primitives;
    static std::mutex mutex;  // MindSpore may run independent operators at once
    std::lock_guard<std::mutex> lock(mutex);
    try {
        if (primitives.size() > most) primitives.clear();
        auto found = primitives.try_emplace(shape.key(pass), pass, shape).first;
        found->second.run(src, weights, bias, dst);
        return 0;
    } catch (const Failure&) {
        return 1;
    }
}

// x (B, Y, X, C), weight (O, k, k, C), dst (B, Y', X', O), geometry (stride, zeros before)
Shape shape_of(const int64_t* x, const int64_t* weight, const int64_t* dst, void* geometry) {
    const int32_t* g = static_cast<int32_t*>(geometry);
    return {x[0], x[1], x[2], x[3], weight[0], weight[1], g[0], g[1], dst[1], dst[2]};
}

}  // namespace

// x, weight, bias (O), geometry (2) int32 -> convolution of x
KERNEL(conv2d) {
    return run(forward, shape_of(shapes[0], shapes[1], shapes[4], params[3]), params[0], params[1],
               params[2], params[4]);
}

// gradient of the result, weight, x, geometry -> gradient of x
KERNEL(conv2d_grad_x) {
    return run(backward_data, shape_of(shapes[2], shapes[1], shapes[0], params[3]), params[4],
               params[1], nullptr, params[0]);
}

// gradient of the result, x, weight, geometry -> gradients of the weight and of the bias
KERNEL(conv2d_grad_weight) {
    return run(backward_weights, shape_of(shapes[1], shapes[2], shapes[0], params[3]), params[1],
               params[4], params[5], params[0]);
}
