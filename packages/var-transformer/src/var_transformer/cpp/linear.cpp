// Affine maps of the last axis, y = x weight^T + bias, and their gradients.
//
// oneDNN first copies the weight into its own order, which a few rows of x are not worth: for them
// both matrices are read as they lie, and every weight once.

#include <algorithm>

#include "kernel.h"
#include "onednn.h"
#include "shapes.h"
#include "tile.h"

namespace {

constexpr int64_t few = 40;  // rows that are multiplied here; measured against oneDNN's
constexpr int64_t depth_part = 1024, outputs_part = 32;

// y (R x N) = a (R x depth) b^T (b: N x depth), added to what y holds
template <int R, int N>
void dots(int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row, float* y,
          int64_t y_row) {
    Vector sums[R][N] = {};
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
        Vector right[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) right[j] = *reinterpret_cast<const Vector*>(b + j * b_row + k);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const Vector left = *reinterpret_cast<const Vector*>(a + i * a_row + k);
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
constexpr const Dots* dots_table[6] = {dots_of<1>, dots_of<2>, dots_of<3>,
                                       dots_of<4>, dots_of<5>, dots_of<6>};

// y (rows x outputs) += x (rows x depth) weight^T
void multiply_few(int64_t rows, int64_t outputs, int64_t depth, const float* x, const float* weight,
                  float* y) {
    parallel_for((outputs + outputs_part - 1) / outputs_part, [&](int64_t job) {
        const int64_t first = job * outputs_part, last = std::min(outputs, first + outputs_part);
        for (int64_t k = 0; k < depth; k += depth_part) {
            const int64_t deep = std::min(depth_part, depth - k);
            for (int64_t j = first; j < last; j += 4) {
                for (int64_t i = 0; i < rows; i += 6) {
                    const int64_t high = std::min<int64_t>(6, rows - i);
                    const int64_t wide = std::min<int64_t>(4, last - j);
                    dots_table[high - 1][wide - 1](deep, x + i * depth + k, depth,
                                                   weight + j * depth + k, depth,
                                                   y + i * outputs + j, outputs);
                }
            }
        }
    });
}

int64_t rows_of(const int64_t* shape, int dimensions) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < dimensions; ++i) rows *= shape[i];
    return rows;
}

}  // namespace

RESULT_SHAPE(linear) {
    auto shape = shape_of(ndims, shapes, 0);
    shape.back() = shapes[1][0];
    return shape;
}

// x (..., K), weight (N, K), bias (N) -> (..., N)
KERNEL(linear) {
    const int64_t rows = rows_of(shapes[0], ndims[0]), outputs = shapes[1][0], depth = shapes[1][1];
    const float *x = floats(params, 0), *weight = floats(params, 1), *bias = floats(params, 2);
    float* y = floats(params, 3);
    expect(shapes[0][ndims[0] - 1] == depth && shapes[2][0] == outputs);
    if (rows > few) {
        return matrix_product(rows, outputs, depth, {x, depth, 1}, {weight, 1, depth}, bias, y);
    }
    for (int64_t i = 0; i < rows; ++i) std::copy_n(bias, outputs, y + i * outputs);
    multiply_few(rows, outputs, depth, x, weight, y);
}

// gradient of the result (..., N), x (..., K), weight (N, K) -> gradients of x, weight and bias
KERNEL(linear_grad) {
    const int64_t rows = rows_of(shapes[1], ndims[1]), outputs = shapes[2][0], depth = shapes[2][1];
    const float *grad = floats(params, 0), *x = floats(params, 1), *weight = floats(params, 2);
    float* grad_bias = floats(params, 5);
    expect(shapes[1][ndims[1] - 1] == depth && rows_of(shapes[0], ndims[0]) == rows &&
           shapes[0][ndims[0] - 1] == outputs);
    matrix_product(rows, depth, outputs, {grad, outputs, 1}, {weight, depth, 1}, nullptr,
                   floats(params, 3));
    matrix_product(outputs, depth, rows, {grad, 1, outputs}, {x, depth, 1}, nullptr,
                   floats(params, 4));
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
