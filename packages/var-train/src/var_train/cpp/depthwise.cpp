// Depthwise convolution of channels-last maps (arXiv:1704.04861) between two ReLU6.

#include <algorithm>
#include <vector>

#include "common/kernel.h"
#include "common/threads.h"

namespace {

inline float relu6(float x) { return std::min(std::max(x, 0.0f), 6.0f); }

// x (B, Y, X, C), weight (k, k, C), stride and zeros before both axes (2) int32, and the size of
// the result (B, Y', X', C)
struct Convolution {
    int64_t images, rows, columns, channels, kernel, stride, before, out_rows, out_columns;
    const float *x, *weight;

    Convolution(const Arrays& arrays, int x_at, int weight_at, int geometry_at, int result_at) {
        const auto size = arrays.sizes<4>(x_at), result = arrays.sizes<4>(result_at);
        images = size[0], rows = size[1], columns = size[2], channels = size[3];
        kernel = arrays.sizes<3>(weight_at)[0];
        out_rows = result[1], out_columns = result[2];
        const int32_t* geometry = arrays.get<int32_t>(geometry_at, {2});
        stride = geometry[0], before = geometry[1];
        expect(kernel > 0 && stride > 0 && before >= 0);
        x = arrays.get(x_at, {images, rows, columns, channels});
        weight = arrays.get(weight_at, {kernel, kernel, channels});
        expect(result[0] == images && result[3] == channels);
    }

    // The columns that a row of results reads, zeros included.
    int64_t read_columns() const { return (out_columns - 1) * stride + kernel; }
};

}  // namespace

// x, weight, bias (C), geometry -> relu6(convolution of relu6(x) + bias)
KERNEL(depthwise) {
    const Convolution s(arrays, 0, 1, 3, 4);
    const int64_t c = s.channels, k = s.kernel, width = s.read_columns();
    const float* bias = arrays.get(2, {c});
    float* y = arrays.get(4, arrays.shape(4));
    parallel_for(s.images * s.out_rows, [&](int64_t job) {
        const int64_t b = job / s.out_rows, first = job % s.out_rows * s.stride - s.before;
        std::vector<float> lines(k * width * c, 0.0f);  // what this row of results reads
        for (int64_t i = 0; i < k; ++i) {
            if (first + i < 0 || first + i >= s.rows) continue;
            const float* from = s.x + (b * s.rows + first + i) * s.columns * c;
            float* to = &lines[(i * width + s.before) * c];
            const int64_t count = std::min(s.columns, width - s.before) * c;
#pragma omp simd
            for (int64_t j = 0; j < count; ++j) to[j] = relu6(from[j]);
        }
        for (int64_t column = 0; column < s.out_columns; ++column) {
            float* to = y + (job * s.out_columns + column) * c;
            std::copy(bias, bias + c, to);
            for (int64_t tap = 0; tap < k * k; ++tap) {
                const float* w = s.weight + tap * c;
                const float* from = &lines[(tap / k * width + column * s.stride + tap % k) * c];
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) to[j] += w[j] * from[j];
            }
#pragma omp simd
            for (int64_t j = 0; j < c; ++j) to[j] = relu6(to[j]);
        }
    });
}

// gradient of the result, x, weight, geometry, the result -> gradient of x
KERNEL(depthwise_grad) {
    const Convolution s(arrays, 1, 2, 3, 4);
    const int64_t c = s.channels, k = s.kernel;
    const float *grad = arrays.get(0, arrays.shape(4)), *y = arrays.get(4, arrays.shape(4));
    float* grad_x = arrays.get(5, arrays.shape(1));
    parallel_for(s.images, [&](int64_t b) {
        const int64_t size = s.rows * s.columns * c;
        float* to = grad_x + b * size;
        std::fill(to, to + size, 0.0f);
        std::vector<float> passed(c);
        for (int64_t pixel = 0; pixel < s.out_rows * s.out_columns; ++pixel) {
            const int64_t place = (b * s.out_rows * s.out_columns + pixel) * c;
            for (int64_t j = 0; j < c; ++j) {
                const float value = y[place + j];
                passed[j] = value > 0 && value < 6 ? grad[place + j] : 0;
            }
            for (int64_t tap = 0; tap < k * k; ++tap) {
                const int64_t row = pixel / s.out_columns * s.stride - s.before + tap / k;
                const int64_t column = pixel % s.out_columns * s.stride - s.before + tap % k;
                if (row < 0 || row >= s.rows || column < 0 || column >= s.columns) continue;
                const float* w = s.weight + tap * c;
                float* at = to + (row * s.columns + column) * c;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) at[j] += w[j] * passed[j];
            }
        }
        const float* from = s.x + b * size;
        for (int64_t j = 0; j < size; ++j) {
            if (!(from[j] > 0 && from[j] < 6)) to[j] = 0;
        }
    });
}
