// Convolutions of channels-last maps, forward and backward: Winograd's or direct.

#include <algorithm>
#include <mutex>
#include <vector>

#include "common/buffer.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "direct.h"
#include "winograd.h"

namespace {

// The size of a map whose pixels are repeated
struct Map {
    int64_t b, y, x, c;
};

// (b, y, x, c) -> (b, 2y, 2x, c): each pixel becomes 2x2
void upsample(const Map& map, const float* x, float* out) {
    const int64_t width = map.x, c = map.c;
    parallel_for(map.b * map.y, [&](int64_t y) {
        float* to = out + y * 4 * width * c;
        for (int64_t i = 0; i < width; ++i) {
            const float* from = x + (y * width + i) * c;
            std::copy(from, from + c, to + 2 * i * c);
            std::copy(from, from + c, to + (2 * i + 1) * c);
        }
        std::copy(to, to + 2 * width * c, to + 2 * width * c);
    });
}

// gradient of the result (b, 2y, 2x, c) -> gradient of x (b, y, x, c)
void upsample_grad(const Map& map, const float* grad, float* out) {
    const int64_t width = map.x, c = map.c;
    parallel_for(map.b * map.y, [&](int64_t y) {
        for (int64_t i = 0; i < width; ++i) {
            const float* above = grad + (y * 4 * width + 2 * i) * c;
            const float* below = above + 2 * width * c;
            float* to = out + (y * width + i) * c;
#pragma omp simd
            for (int64_t j = 0; j < c; ++j) {
                to[j] = above[j] + above[c + j] + below[j] + below[c + j];
            }
        }
    });
}

// x (B, Y, X, C), weight (O, k, k, C), out (B, Y', X', O); geometry (3) int32: stride, zeros before
// the pixels of both axes, and 1 if each pixel of x stands for 2x2, else 0
struct Geometry {
    direct::Shape full;  // with the size of x after the repetition of its pixels
    bool upsampled;

    // Of these arrays
    Geometry(const Arrays& arrays, int x, int weight, int out, int geometry) {
        const auto x_size = arrays.sizes<4>(x), k = arrays.sizes<4>(weight);
        const auto out_size = arrays.sizes<4>(out);
        const int32_t* g = arrays.get<int32_t>(geometry, {3});
        expect(g[0] > 0 && g[1] >= 0 && (g[2] == 0 || g[2] == 1) && k[1] > 0 && k[1] == k[2]);
        expect(x_size[0] == out_size[0] && x_size[3] == k[3] && k[0] == out_size[3]);
        upsampled = g[2];
        const int64_t times = upsampled ? 2 : 1;
        full = {x_size[0], x_size[1] * times, x_size[2] * times, x_size[3], k[0], k[1], g[0],
                g[1],      out_size[1],       out_size[2]};
    }

    Arrays::Shape x() const {
        const int64_t times = upsampled ? 2 : 1;
        return {full.b, full.y / times, full.x / times, full.c};
    }
    Arrays::Shape weight() const { return {full.o, full.kernel, full.kernel, full.c}; }
    Arrays::Shape bias() const { return {full.o}; }
    Arrays::Shape out() const { return {full.b, full.out_y, full.out_x, full.o}; }
    Map stored() const { return {full.b, full.y / 2, full.x / 2, full.c}; }  // if upsampled

    int64_t pixels() const { return full.b * full.y * full.x; }
    int64_t x_size() const { return pixels() / (upsampled ? 4 : 1) * full.c; }
    int64_t out_size() const { return full.b * full.out_y * full.out_x * full.o; }

    // Whether no output reads a pixel: there is none, or all outputs lie in the zeros around x.
    bool empty() const {
        return x_size() == 0 || out_size() == 0 || full.read_y() <= 0 || full.read_x() <= 0;
    }

    // Whether Winograd's algorithm applies and pays: for fewer tiles the transforms of the weights
    // cost more than the multiplications they save.
    bool winograd(int64_t least_tiles = 16) const {
        const bool same_size = full.kernel == 3 && full.stride == 1 && full.before == 1 &&
                               full.out_y == full.y && full.out_x == full.x;
        return same_size && winograd_shape().tiles() >= least_tiles;
    }

    winograd::Shape winograd_shape() const {
        return {full.b, full.y, full.x, full.c, full.o, upsampled};
    }
};

// Every convolution holds it: all share the buffers here, in direct.cpp and in winograd.cpp, and
// oneDNN's primitives.
std::mutex one_at_a_time;

// x, or its gradient, at the full size. Never destroyed: a thread may be at work when the process
// ends.
Buffer& repeated = *new Buffer;

// x as the direct convolution reads it
float* full_size(const Geometry& g, float* x) {
    if (!g.upsampled) return x;
    float* full_x = repeated.floats(g.pixels() * g.full.c);
    upsample(g.stored(), x, full_x);
    return full_x;
}

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
    direct::convolve(direct::forward, s, full_size(g, x), weight, bias, out);
    if (plus) {
        parallel_for_if(worth_threads(g.out_size()), s.b * s.out_y, [&](int64_t row) {
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

// x, weight, bias (O), geometry -> convolution of x
KERNEL(conv2d) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(arrays, 0, 1, 4, 3);
    convolve(g, arrays.get(0, g.x()), arrays.get(1, g.weight()), arrays.get(2, g.bias()), nullptr,
             arrays.get(4, g.out()));
}

// x, weight, bias, plus (B, Y', X', O), geometry -> convolution of x, plus `plus`
KERNEL(conv2d_plus) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(arrays, 0, 1, 5, 4);
    convolve(g, arrays.get(0, g.x()), arrays.get(1, g.weight()), arrays.get(2, g.bias()),
             arrays.get(3, g.out()), arrays.get(5, g.out()));
}

// gradient of the result, weight, x, geometry -> gradient of x
KERNEL(conv2d_grad_x) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(arrays, 2, 1, 0, 3);
    const direct::Shape& s = g.full;
    float *grad = arrays.get(0, g.out()), *weight = arrays.get(1, g.weight());
    float* out = arrays.get(4, g.x());
    arrays.get(2, g.x());  // only its shape counts
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
    if (g.upsampled) upsample_grad(g.stored(), full_out, out);
}

// gradient of the result, x, weight, geometry -> gradients of the weight and of the bias
KERNEL(conv2d_grad_weight) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    const Geometry g(arrays, 1, 2, 0, 3);
    const direct::Shape& s = g.full;
    float *grad = arrays.get(0, g.out()), *x = arrays.get(1, g.x());
    float *grad_weight = arrays.get(4, g.weight()), *grad_bias = arrays.get(5, g.bias());
    arrays.get(2, g.weight());  // only its shape counts
    if (g.empty()) {
        std::fill_n(grad_weight, s.o * s.kernel * s.kernel * s.c, 0.0f);
        return sum_rows(s.b * s.out_y * s.out_x, s.o, grad, grad_bias);
    }
    constexpr int64_t least_tiles = 32;  // U is read again to add to it
    if (g.winograd(least_tiles) && winograd::takes(s.c, s.o)) {
        winograd::grad_weight(g.winograd_shape(), x, grad, grad_weight);
        return sum_rows(g.pixels(), s.o, grad, grad_bias);
    }
    direct::convolve(direct::backward_weights, s, full_size(g, x), grad_weight, grad_bias, grad);
}
