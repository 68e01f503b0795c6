#include "direct.h"

#include <algorithm>
#include <array>
#include <map>

#include "common/buffer.h"
#include "common/onednn.h"
#include "common/threads.h"
#include "unfolded.h"

namespace direct {

namespace {

using namespace onednn;

Desc preferred(std::initializer_list<int64_t> dims) {
    dnnl_memory_desc* desc;
    check(memory_desc_create_with_tag(&desc, int(dims.size()), dims.begin(), f32, any));
    return Desc(desc);
}

// Never destroyed: a thread may be at work when the process ends.
Buffer &reordered = *new Buffer, &scratchpad = *new Buffer, &cropped = *new Buffer;

// One pass of a convolution of one shape. oneDNN chooses the layout of the weights; maps and the
// weights outside are plain.
class Convolution {
   public:
    Convolution(Pass pass, const Shape& s) : pass_(pass) {
        const int64_t products = s.b * s.out_y * s.out_x * s.o * s.kernel * s.kernel * s.c;
        on_threads(threads_for(products), [&] { create(s); });
    }

    void run(void* src, void* weights, void* bias, void* dst) {
        check(memory_set_data_handle(src_.get(), src));
        check(memory_set_data_handle(plain_.get(), weights));
        check(memory_set_data_handle(bias_.get(), bias));
        check(memory_set_data_handle(dst_.get(), dst));
        check(
            memory_set_data_handle(scratchpad_.get(), scratchpad.floats(floats(scratchpad_size_))));
        void* blocked = reorder_ ? reordered.floats(floats(weights_size_)) : weights;
        check(memory_set_data_handle(weights_.get(), blocked));
        if (reorder_ && pass_ != backward_weights)
            execute(reorder_, {{arg_src, plain_.get()}, {arg_dst, weights_.get()}});
        const bool to_src = pass_ == backward_data, to_weights = pass_ == backward_weights;
        std::vector<Argument> arguments{
            {to_src ? arg_diff_src : arg_src, src_.get()},
            {to_weights ? arg_diff_weights : arg_weights, weights_.get()},
            {pass_ == forward ? arg_dst : arg_diff_dst, dst_.get()},
            {arg_scratchpad, scratchpad_.get()}};
        if (!to_src) arguments.push_back({to_weights ? arg_diff_bias : arg_bias, bias_.get()});
        execute(primitive_, arguments);
        if (reorder_ && to_weights)
            execute(reorder_, {{arg_src, weights_.get()}, {arg_dst, plain_.get()}});
    }

   private:
    static int64_t floats(size_t bytes) { return int64_t(bytes + 3) / 4; }

    void create(const Shape& s) {
        const int64_t k = s.kernel;
        Desc src = strided({s.b, s.c, s.y, s.x}, {s.y * s.x * s.c, 1, s.x * s.c, s.c});
        Desc dst =
            strided({s.b, s.o, s.out_y, s.out_x}, {s.out_y * s.out_x * s.o, 1, s.out_x * s.o, s.o});
        Desc plain = strided({s.o, s.c, k, k}, {k * k * s.c, 1, k * s.c, s.c});
        Desc bias = strided({s.o}, {1});
        Desc weights = preferred({s.o, s.c, k, k});
        const int64_t stride[] = {s.stride, s.stride}, dilation[] = {0, 0};
        const int64_t before[] = {s.before, s.before};
        const int64_t after[] = {(s.out_y - 1) * s.stride + k - s.before - s.y,
                                 (s.out_x - 1) * s.stride + k - s.before - s.x};
        const Attr attr = with_scratchpad();

        dnnl_primitive_desc* created;
        check(convolution_forward_primitive_desc_create(
            &created, engine, forward_training, convolution_direct, src.get(), weights.get(),
            bias.get(), dst.get(), stride, dilation, before, after, attr.get()));
        PrimitiveDesc desc(created);
        if (pass_ == backward_data) {
            check(convolution_backward_data_primitive_desc_create(
                &created, engine, convolution_direct, src.get(), weights.get(), dst.get(), stride,
                dilation, before, after, desc.get(), attr.get()));
            desc.reset(created);
        } else if (pass_ == backward_weights) {
            check(convolution_backward_weights_primitive_desc_create(
                &created, engine, convolution_direct, src.get(), weights.get(), bias.get(),
                dst.get(), stride, dilation, before, after, desc.get(), attr.get()));
            desc.reset(created);
        }
        primitive_ = primitive_of(desc.get());

        const bool writes_weights = pass_ == backward_weights;
        const dnnl_memory_desc* chosen = primitive_desc_query_md(
            desc.get(), writes_weights ? query_diff_weights : query_weights, 0);
        const dnnl_memory_desc* scratch = primitive_desc_query_md(desc.get(), query_scratchpad, 0);
        check(!chosen || !scratch);
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

    Pass pass_;
    Primitive primitive_, reorder_;
    Memory src_, weights_, plain_, bias_, dst_, scratchpad_;
    size_t weights_size_ = 0, scratchpad_size_ = 0;
};

void run(Pass pass, const Shape& s, float* src, float* weights, float* bias, float* dst) {
    constexpr size_t most = 1024;  // shapes; beyond it, callers vary a dimension without end
    static auto& convolutions = *new std::map<std::array<int64_t, 11>, Convolution>;
    if (convolutions.size() > most) convolutions.clear();
    const std::array<int64_t, 11> key{pass,     s.b,      s.y,      s.x,     s.c,    s.o,
                                      s.kernel, s.stride, s.before, s.out_y, s.out_x};
    convolutions.try_emplace(key, pass, s).first->second.run(src, weights, bias, dst);
}

// The first rows and columns of maps, as maps of their own,
void crop(const Shape& whole, const Shape& part, const float* from, float* to) {
    const int64_t width = part.x * part.c;
    parallel_for(part.b * part.y, [&](int64_t row) {
        const int64_t source = row / part.y * whole.y + row % part.y;
        std::copy_n(from + source * whole.x * whole.c, width, to + row * width);
    });
}

// and back, with zeros in the other pixels.
void uncrop(const Shape& whole, const Shape& part, const float* from, float* to) {
    const int64_t width = part.x * part.c;
    parallel_for(whole.b * whole.y, [&](int64_t row) {
        float *begin = to + row * whole.x * whole.c, *end = begin + whole.x * whole.c;
        const int64_t image = row / whole.y, y = row % whole.y;
        if (y < part.y) {
            begin = std::copy_n(from + (image * part.y + y) * width, width, begin);
        }
        std::fill(begin, end, 0.0f);
    });
}

}  // namespace

void convolve(Pass pass, const Shape& s, float* src, float* weights, float* bias, float* dst) {
    if (!compiles) return unfolded::convolve(pass, s, src, weights, bias, dst);
    // Pixels after the last that is read would be a negative padding, with which oneDNN 3.10 gives
    // wrong gradients of the weights on AVX2. It never sees them.
    Shape part = s;
    part.y = s.read_y(), part.x = s.read_x();
    if (part.y == s.y && part.x == s.x) return run(pass, s, src, weights, bias, dst);
    float* read = cropped.floats(part.b * part.y * part.x * part.c);
    if (pass != backward_data) crop(s, part, src, read);
    run(pass, part, read, weights, bias, dst);
    if (pass == backward_data) uncrop(s, part, read, src);
}

}  // namespace direct
