// GELU in its tanh form (arXiv:1606.08415): x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).

#include "exponential.h"
#include "kernel.h"
#include "shapes.h"

namespace {

constexpr float linear = 1.5957691216f, cubic = 0.0713548163f;
constexpr int64_t chunk = 1 << 14;

int64_t size_of(const int64_t* shape, int dimensions) {
    int64_t size = 1;
    for (int i = 0; i < dimensions; ++i) size *= shape[i];
    return size;
}

template <typename Work>
void over_chunks(int64_t size, Work work) {
    parallel_for((size + chunk - 1) / chunk,
                 [&](int64_t i) { work(i * chunk, std::min(size, (i + 1) * chunk)); });
}

inline float gate(float x) { return 1 / (1 + exponential(-x * (linear + cubic * (x * x)))); }

}  // namespace

RESULT_SHAPE(gelu) { return shape_of(ndims, shapes, 0); }

// x -> GELU of x, of any shape
KERNEL(gelu) {
    const float* x = floats(params, 0);
    float* y = floats(params, 1);
    over_chunks(size_of(shapes[0], ndims[0]), [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) y[i] = x[i] * gate(x[i]);
    });
}

// gradient of the result, x -> gradient of x
KERNEL(gelu_grad) {
    const float *grad = floats(params, 0), *x = floats(params, 1);
    float* grad_x = floats(params, 2);
    over_chunks(size_of(shapes[0], ndims[0]), [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const float s = gate(x[i]), slope = linear + 3 * cubic * (x[i] * x[i]);
            grad_x[i] = grad[i] * s * (1 + x[i] * (1 - s) * slope);
        }
    });
}
