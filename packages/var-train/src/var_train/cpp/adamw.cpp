// AdamW (arXiv:1711.05101), a parameter at a time. For var-train, which has no library of its own.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel.h"

namespace {

constexpr int64_t chunk = 1 << 14;  // numbers that one thread takes at once

int64_t size_of(const int64_t* shape, int dimensions) {
    int64_t size = 1;
    for (int i = 0; i < dimensions; ++i) size *= shape[i];
    return size;
}

template <typename Work>
void over_chunks(int64_t size, Work work) {
    parallel_for((size + chunk - 1) / chunk,
                 [&](int64_t i) { work(i, i * chunk, std::min(size, (i + 1) * chunk)); });
}

}  // namespace

// x, of any shape -> the sum of its squares (1)
KERNEL(sum_of_squares) {
    const int64_t size = size_of(shapes[0], ndims[0]);
    const float* x = floats(params, 0);
    std::vector<float> sums((size + chunk - 1) / chunk);
    over_chunks(size, [&](int64_t i, int64_t begin, int64_t end) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; ++j) sum += x[j] * x[j];
        sums[i] = sum;
    });
    double total = 0;
    for (float sum : sums) total += sum;
    *floats(params, 1) = float(total);
}

// parameter, first and second moment, gradient, all of one shape; factor () of the gradient, bool ()
// whether it is finite, rate, epsilon and decay (3), decays of the moments (2) -> nothing
//
// The parameter and its moments are written in place; without a finite gradient they stay.
KERNEL(adamw) {
    if (!*static_cast<const bool*>(params[5])) return;
    float *parameter = floats(params, 0), *first = floats(params, 1), *second = floats(params, 2);
    const float *gradient = floats(params, 3), *scalars = floats(params, 6);
    const float factor = *floats(params, 4), beta1 = *floats(params, 7), beta2 = floats(params, 7)[1];
    const float rate = scalars[0], epsilon = scalars[1], decay = scalars[2];
    over_chunks(size_of(shapes[0], ndims[0]), [&](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
            const float g = factor * gradient[j];
            first[j] += (1 - beta1) * (g - first[j]);
            second[j] += (1 - beta2) * (g * g - second[j]);
            const float update = first[j] / (std::sqrt(second[j]) + epsilon);
            parameter[j] -= rate * (update + decay * parameter[j]);
        }
    });
}
