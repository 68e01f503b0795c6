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
        upsampled = g[2];
        const int64_t times = upsampled ? 2 : 1;
        full = {x[0],      x[1] * times, x[2] * times, x[3],   weight[0],
                weight[1], g[0],         g[1],         out[1], out[2]};
    }

    int64_t pixels() const { return full.b * full.y * full.x; }

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

// Runs `work` alone: MindSpore may run independent operators at once, and buffers are kept.
template <typename Work>
int alone(Work work) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    try {
        work();
        return 0;
    } catch (const direct::Failure&) {
        return 1;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

Buffer repeated;  // x, or its gradient, at the full size

void convolve(const Geometry& g, float* x, float* weight, float* bias, const float* plus,
              float* out) {
    const direct::Shape& s = g.full;
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
        float* sum = &partial[part * c];
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
    return alone([&] {
        const Geometry geometry(shapes[0], shapes[1], shapes[4], params[3]);
        convolve(geometry, floats(params, 0), floats(params, 1), floats(params, 2), nullptr,
                 floats(params, 4));
    });
}

// x, weight, bias, plus (B, Y', X', O), geometry -> convolution of x, plus `plus`
KERNEL(conv2d_plus) {
    return alone([&] {
        const Geometry geometry(shapes[0], shapes[1], shapes[5], params[4]);
        convolve(geometry, floats(params, 0), floats(params, 1), floats(params, 2),
                 floats(params, 3), floats(params, 5));
    });
}

// gradient of the result, weight, x, geometry -> gradient of x
KERNEL(conv2d_grad_x) {
    return alone([&] {
        const Geometry g(shapes[2], shapes[1], shapes[0], params[3]);
        const direct::Shape& s = g.full;
        float *grad = floats(params, 0), *weight = floats(params, 1), *out = floats(params, 4);
        float* full_out = g.upsampled ? repeated.floats(g.pixels() * s.c) : out;
        if (g.winograd() && winograd::takes(s.o, s.c)) {
            winograd::convolve_transposed({s.b, s.y, s.x, s.o, s.c, false}, grad, weight, full_out);
        } else {
            direct::convolve(direct::backward_data, s, full_out, weight, nullptr, grad);
        }
        if (g.upsampled) upsample_grad({s.b, s.y / 2, s.x / 2, s.c}, full_out, out);
    });
}

// gradient of the result, x, weight, geometry -> gradients of the weight and of the bias
KERNEL(conv2d_grad_weight) {
    return alone([&] {
        const Geometry g(shapes[1], shapes[2], shapes[0], params[3]);
        const direct::Shape& s = g.full;
        float *grad = floats(params, 0), *x = floats(params, 1);
        if (g.winograd() && winograd::takes(s.c, s.o)) {
            winograd::grad_weight(g.winograd_shape(), x, grad, floats(params, 4));
            return sum_rows(g.pixels(), s.o, grad, floats(params, 5));
        }
        if (g.upsampled) {
            float* full_x = repeated.floats(g.pixels() * s.c);
            upsample({s.b, s.y / 2, s.x / 2, s.c}, x, full_x);
            x = full_x;
        }
        direct::convolve(direct::backward_weights, s, x, floats(params, 4), floats(params, 5),
                         grad);
    });
}
