// AdamW (arXiv:1711.05101), one parameter at a time.

#include <cmath>
#include <vector>

#include "common/kernel.h"
#include "common/threads.h"

// x, of any shape -> the sum of its squares (1)
KERNEL(sum_of_squares) {
    const int64_t size = arrays.size(0);
    const float* x = arrays.get(0, arrays.shape(0));
    float* result = arrays.get(1, {1});
    std::vector<float> sums(chunks_of(size));
    over_chunks(size, [&](int64_t i, int64_t begin, int64_t end) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; ++j) sum += x[j] * x[j];
        sums[i] = sum;
    });
    double total = 0;
    for (float sum : sums) total += sum;
    *result = float(total);
}

// parameter, first and second moment, gradient, all of one shape; factor () of the gradient; bool
// () whether it is finite; rate, epsilon and decay (3); decays of the moments (2)
//
// Writes the parameter and its moments in place, unless the gradient is not finite.
KERNEL(adamw) {
    const auto shape = arrays.shape(0);
    float *parameter = arrays.get(0, shape), *first = arrays.get(1, shape);
    float* second = arrays.get(2, shape);
    const float *gradient = arrays.get(3, shape), factor = arrays.element(4);
    const bool finite = arrays.element<bool>(5);
    const float *scalars = arrays.get(6, {3}), *betas = arrays.get(7, {2});
    const float rate = scalars[0], epsilon = scalars[1], decay = scalars[2];
    const float beta1 = betas[0], beta2 = betas[1];
    if (!finite) return;
    over_chunks(arrays.size(0), [&](int64_t, int64_t begin, int64_t end) {
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
