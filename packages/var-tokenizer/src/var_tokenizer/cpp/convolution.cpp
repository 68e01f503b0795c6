// Convolutions of channels-last maps, forward and backward: by Winograd's way or direct.

#include <algorithm>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "direct.h"
#include "kernel.h"
#include "pixels.h"
#include "winograd.h"

namespace {

// x (B, Y, X, C), weight (O, k, k, C), out (B, Y', X', O); geometry: stride, zeros before the
// pixels of both axes, and 1 where each pixel of x stands for 2x2, else 0
struct Geometry {
    direct::Shape full;  // with the size of x after the repetition of its pixels
    bool upsampled;

    Geometry(const int64_t* x, const int64_t* weight, const int64_t* out, const void* geometry) {
        const int32_t* g = static_cast<const int32_t*>(geometry);
        expect(g[0] > 0 && g[1] >= 0 && weight[1] > 0 && weight[1] == weight[2]);
        expect(x[0] == out[0] && x[3] == weight[3] && weight[0] == out[3]);
        upsampled = g[2];
        const int64_t times = upsampled ? 2 : 1;
        full = {x[0],      x[1] * times, x[2] * times, x[3],   weight[0],
                weight[1], g[0],         g[1],         out[1], out[2]};
    }

    int64_t pixels() const { return full.b * full.y * full.x; }
    int64_t x_size() const { return pixels() / (upsampled ? 4 : 1) * full.c; }
    int64_t out_size() const { return full.b * full.out_y * full.out_x * full.o; }

    // Whether no pixel of x counts: there is none, or all outputs lie in the zeros around.
    bool empty() const {
        return x_size() == 0 || out_size() == 0 || full.read_y() <= 0 || full.read_x() <= 0;
    }

    // For fewer tiles the transforms of the weights cost more than the multiplications they save.
    bool winograd() const {
        constexpr int64_t least_tiles = 16;
        const bool halves = full.kernel == 3 && full.stride == 1 && full.before == 1 &&
                            full.out_y == full.y && full.out_x == full.x;
        return halves && winograd_shape().tiles() >= least_tiles;
    }

    winograd::Shape winograd_shape() const {
        return {full.b, full.y, full.x, full.c, full.o, upsampled};
    }
};

// Held by every convolution, of every kernel: they share the buffers here, in direct.cpp and in
// winograd.cpp, and the primitives of oneDNN.
std::mutex one_at_a_time;

// x, or its gradient, at the full size; never destroyed: a thread may be at work when the process
// ends
Buffer& repeated = *new Buffer;

void convolve(const Geometry& g, float* x, float* weight, float* bias, const float* plus,
              float* out) {
    const direct::Shape& s = g.full;
    if (g.empty()) {
        for (int64_t i = 0; i < g.out_size(); ++i) out[i] = bias[i % s.o] + (plus ? plus[i] : 0);
        return;
    }
    if (g.winograd() && winograd::takes(s.c, s.o)) {
        return winograd::convolve(g.winograd_shape(), x, weight, bias, plus, out);
    }
    if (g.upsampled) {
        float* full_x = repeated.floats(g.pixels() * s.c);
        upsample({s.b, s.y / 2, s.x / 2, s.c}, x, full_x);
        x = full_x;
    }
    direct::convolve(direct::forward, s, x, weight, bias, out);
    if (plus) {
        parallel_for(s.b * s.out_y, [&](int64_t row) {
            const int64_t begin = row * s.out_x * s.o, end = begin + s.out_x * s.o;
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) out[i] += plus[i];
        });
    }
}

// (rows, c) -> (c)
void sum_rows(int64_t rows, int64_t c, const float* x, float* sums) {
    const int64_t parts = thread_count();
    std::vector<float> partial(parts * c, 0.0f);
    parallel_for(parts, [&](int64_t part) {
        float* sum = partial.data() + part * c;
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
#pragma omp simd
            for (int64_t j = 0; j < c; ++j) sum[j] += x[row * c + j];
        }
    });
    std::fill_n(sums, c, 0.0f);
    for (int64_t i = 0; i < parts * c; ++i) sums[i % c] += partial[i];
}

}  // namespace

// x, weight, bias (O), geometry (3) int32 -> convolution of x
KERNEL(conv2d) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry geometry(shapes[0], shapes[1], shapes[4], params[3]);
    convolve(geometry, floats(params, 0), floats(params, 1), floats(params, 2), nullptr,
             floats(params, 4));
}

// x, weight, bias, plus (B, Y', X', O), geometry -> convolution of x, plus `plus`
KERNEL(conv2d_plus) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry geometry(shapes[0], shapes[1], shapes[5], params[4]);
    convolve(geometry, floats(params, 0), floats(params, 1), floats(params, 2), floats(params, 3),
             floats(params, 5));
}

// gradient of the result, weight, x, geometry -> gradient of x
KERNEL(conv2d_grad_x) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(shapes[2], shapes[1], shapes[0], params[3]);
    const direct::Shape& s = g.full;
    float *grad = floats(params, 0), *weight = floats(params, 1), *out = floats(params, 4);
    if (g.empty()) {
        std::fill_n(out, g.x_size(), 0.0f);
        return;
    }
    float* full_out = g.upsampled ? repeated.floats(g.pixels() * s.c) : out;
    if (g.winograd() && winograd::takes(s.o, s.c)) {
        winograd::convolve_transposed({s.b, s.y, s.x, s.o, s.c, false}, grad, weight, full_out);
    } else {
        direct::convolve(direct::backward_data, s, full_out, weight, nullptr, grad);
    }
    if (g.upsampled) upsample_grad({s.b, s.y / 2, s.x / 2, s.c}, full_out, out);
}

// gradient of the result, x, weight, geometry -> gradients of the weight and of the bias
KERNEL(conv2d_grad_weight) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(shapes[1], shapes[2], shapes[0], params[3]);
    const direct::Shape& s = g.full;
    float *grad = floats(params, 0), *x = floats(params, 1);
    float *grad_weight = floats(params, 4), *grad_bias = floats(params, 5);
    if (g.empty()) {
        std::fill_n(grad_weight, s.o * s.kernel * s.kernel * s.c, 0.0f);
        return sum_rows(s.b * s.out_y * s.out_x, s.o, grad, grad_bias);
    }
    if (g.winograd() && winograd::takes(s.c, s.o)) {
        winograd::grad_weight(g.winograd_shape(), x, grad, grad_weight);
        return sum_rows(g.pixels(), s.o, grad, grad_bias);
    }
    if (g.upsampled) {
        float* full_x = repeated.floats(g.pixels() * s.c);
        upsample({s.b, s.y / 2, s.x / 2, s.c}, x, full_x);
        x = full_x;
    }
    direct::convolve(direct::backward_weights, s, x, grad_weight, grad_bias, grad);
}
