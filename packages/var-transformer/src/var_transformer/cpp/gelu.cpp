// GELU in its tanh form (arXiv:1606.08415): x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).

#include <algorithm>

#include "common/exponential.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "layers.h"

namespace {

constexpr float linear = 1.5957691216f, cubic = 0.0713548163f;

// 0 where it is less than 1e-38: times a power of x it would not vanish as it should
inline float gate(float x) {
    const float g = 1 / (1 + exponential(-x * (linear + cubic * (x * x))));
    return x < -10 ? 0 : g;
}

}  // namespace

void gelu_of(int64_t size, const float* x, float* y) {
    over_chunks(size, [&](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) y[i] = x[i] * gate(x[i]);
    });
}

RESULT_SHAPE(gelu) { return arrays.shape(0); }

// x, of any shape -> GELU of x
KERNEL(gelu) {
    const auto shape = arrays.shape(0);
    gelu_of(arrays.size(0), arrays.get(0, shape), arrays.get(1, shape));
}

// gradient of the result, x -> gradient of x
KERNEL(gelu_grad) {
    const auto shape = arrays.shape(0);
    const float *grad = arrays.get(0, shape), *x = arrays.get(1, shape);
    float* grad_x = arrays.get(2, shape);
    over_chunks(arrays.size(0), [&](int64_t, int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            // beyond, it is 0 or 1, and powers of x would overflow
            const float c = std::min(std::max(x[i], -10.0f), 10.0f);
            const float s = gate(c), slope = linear + 3 * cubic * (c * c);
            grad_x[i] = grad[i] * s * (1 + c * (1 - s) * slope);
        }
    });
}
