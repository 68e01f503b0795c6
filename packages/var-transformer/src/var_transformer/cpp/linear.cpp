// Affine maps of the last axis, y = x weight^T + bias, and their gradients.
//
// oneDNN first copies the weight into a layout of its own, which does not pay for a few rows of x.
// For those, both matrices are read in place, and each weight once.

#include <algorithm>

#include "common/kernel.h"
#include "common/threads.h"
#include "products.h"

namespace {

constexpr int64_t few = 40;  // rows up to which this is faster than oneDNN, as measured
constexpr int64_t depth_part = 1024, outputs_part = 32;  // of the weight, 128 KiB, at once

// y (R x N) += a (R x depth) b^T (b: N x depth)
template <int R, int N>
void dots(int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row, float* y,
          int64_t y_row) {
    Vector sums[R][N] = {};
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
        Vector right[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) right[j] = load(b + j * b_row + k);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const Vector left = load(a + i * a_row + k);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < R; ++i) {
        for (int j = 0; j < N; ++j) {
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t e = 0; e < lanes; ++e) total += sums[i][j][e];
            for (int64_t e = k; e < depth; ++e) total += a[i * a_row + e] * b[j * b_row + e];
            y[i * y_row + j] += total;
        }
    }
}

using Dots = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t);

template <int R>
constexpr Dots dots_of[4] = {dots<R, 1>, dots<R, 2>, dots<R, 3>, dots<R, 4>};
constexpr const Dots* dots_table[tile_rows] = {dots_of<1>, dots_of<2>, dots_of<3>,
                                               dots_of<4>, dots_of<5>, dots_of<6>};

// y (rows x outputs) += x (rows x depth) weight^T
void multiply_few(int64_t rows, int64_t outputs, int64_t depth, const float* x, const float* weight,
                  float* y) {
    parallel_for((outputs + outputs_part - 1) / outputs_part, [&](int64_t job) {
        const int64_t first = job * outputs_part, last = std::min(outputs, first + outputs_part);
        for (int64_t k = 0; k < depth; k += depth_part) {
            const int64_t deep = std::min(depth_part, depth - k);
            for (int64_t j = first; j < last; j += tile_vectors) {
                for (int64_t i = 0; i < rows; i += tile_rows) {
                    const int64_t high = std::min(tile_rows, rows - i);
                    const int64_t wide = std::min(tile_vectors, last - j);
                    dots_table[high - 1][wide - 1](deep, x + i * depth + k, depth,
                                                   weight + j * depth + k, depth,
                                                   y + i * outputs + j, outputs);
                }
            }
        }
    });
}

// The shapes of x (..., K) and y (..., N), and the number of their rows
struct Maps {
    Arrays::Shape x, y;
    int64_t rows = 1, depth, outputs;

    // Of arrays x and weight (N, K)
    Maps(const Arrays& arrays, int at_x, int at_weight) : x(arrays.shape(at_x)), y(x) {
        const auto weight = arrays.sizes<2>(at_weight);
        outputs = weight[0], depth = weight[1];
        expect(!x.empty() && x.back() == depth);
        y.back() = outputs;
        for (size_t i = 0; i + 1 < x.size(); ++i) rows *= x[i];
    }
};

}  // namespace

RESULT_SHAPE(linear) {
    auto y = arrays.shape(0);
    y.back() = arrays.shape(1)[0];
    return y;
}

// x (..., K), weight (N, K), bias (N) -> (..., N)
KERNEL(linear) {
    const Maps maps(arrays, 0, 1);
    const int64_t rows = maps.rows, outputs = maps.outputs, depth = maps.depth;
    const float *x = arrays.get(0, maps.x), *weight = arrays.get(1, {outputs, depth});
    const float* bias = arrays.get(2, {outputs});
    float* y = arrays.get(3, maps.y);
    if (rows > few) {
        return matrix_product(rows, outputs, depth, {x, depth, 1}, {weight, 1, depth}, bias, y);
    }
    for (int64_t i = 0; i < rows; ++i) std::copy_n(bias, outputs, y + i * outputs);
    multiply_few(rows, outputs, depth, x, weight, y);
}

// gradient of the result (..., N), x (..., K), weight (N, K) -> gradients of x, weight and bias
KERNEL(linear_grad) {
    const Maps maps(arrays, 1, 2);
    const int64_t rows = maps.rows, outputs = maps.outputs, depth = maps.depth;
    const float *grad = arrays.get(0, maps.y), *x = arrays.get(1, maps.x);
    const float* weight = arrays.get(2, {outputs, depth});
    float *grad_x = arrays.get(3, maps.x), *grad_weight = arrays.get(4, {outputs, depth});
    float* grad_bias = arrays.get(5, {outputs});
    matrix_product(rows, depth, outputs, {grad, outputs, 1}, {weight, depth, 1}, nullptr, grad_x);
    matrix_product(outputs, depth, rows, {grad, 1, outputs}, {x, depth, 1}, nullptr, grad_weight);
    constexpr int64_t part = 128;
    parallel_for((outputs + part - 1) / part, [&](int64_t job) {
        const int64_t first = job * part, wide = std::min(part, outputs - first);
        float* sum = grad_bias + first;
        std::fill_n(sum, wide, 0.0f);
        for (int64_t i = 0; i < rows; ++i) {
            const float* from = grad + i * outputs + first;
#pragma omp simd
            for (int64_t j = 0; j < wide; ++j) sum[j] += from[j];
        }
    });
}
