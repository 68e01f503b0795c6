// The operators around a block's branches (DiT, arXiv:2212.09748): modulated layer norm, gates.

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/kernel.h"
#include "common/threads.h"
#include "layers.h"

namespace {

constexpr float epsilon = 1e-6f;

struct Statistics {
    float mean, inverse_std;

    // of c > 0 numbers
    Statistics(const float* x, int64_t c) {
        // Relative to the first: the rounded mean of equal numbers would differ from them by as
        // much as epsilon.
        const float first = x[0];
        float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < c; ++j) sum += x[j] - first;
        mean = first + sum / float(c);
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < c; ++j) square += (x[j] - mean) * (x[j] - mean);
        inverse_std = 1 / std::sqrt(square / float(c) + epsilon);
    }
};

// Tokens of a batch as rows of channels, in chunks that threads share.
struct Rows : Tokens {
    static constexpr int64_t chunk = 16;  // tokens: sums do not depend on the number of threads

    explicit Rows(Tokens tokens) : Tokens(tokens) {}

    // Of array x (B, L, C)
    Rows(const Arrays& arrays, int x) {
        const auto x_blc = arrays.sizes<3>(x);
        images = x_blc[0], tokens = x_blc[1], channels = x_blc[2];
    }

    Arrays::Shape shape() const { return {images, tokens, channels}; }
    Arrays::Shape one_token() const { return {images, 1, channels}; }

    int64_t chunks() const { return (tokens + chunk - 1) / chunk; }

    // work(image, chunk, where the row begins) for all rows; a chunk's in order, by one thread
    template <typename Work>
    void over_rows(Work work) const {
        if (channels == 0) return;
        parallel_for(images * chunks(), [&](int64_t job) {
            const int64_t image = job / chunks(), i = job % chunks();
            const int64_t end = std::min(tokens, (i + 1) * chunk);
            for (int64_t t = i * chunk; t < end; ++t)
                work(image, i, (image * tokens + t) * channels);
        });
    }
};

// Sums over the tokens of an image, a row of C for each chunk first.
class TokenSums {
   public:
    explicit TokenSums(const Rows& rows)
        : rows_(rows), parts_(rows.images * rows.chunks() * rows.channels, 0.0f) {}

    float* part(int64_t image, int64_t chunk) {
        return parts_.data() + (image * rows_.chunks() + chunk) * rows_.channels;
    }

    void add_up(float* total_b1c) {
        const int64_t c = rows_.channels;
        std::fill_n(total_b1c, rows_.images * c, 0.0f);
        for (int64_t b = 0; b < rows_.images; ++b) {
            for (int64_t i = 0; i < rows_.chunks(); ++i) {
                const float* from = part(b, i);
                float* to = total_b1c + b * c;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) to[j] += from[j];
            }
        }
    }

   private:
    const Rows& rows_;
    std::vector<float> parts_;
};

}  // namespace

void norm_modulated(Tokens tokens, const float* x, const float* scales, const float* shifts,
                    int64_t row, float* y) {
    const int64_t c = tokens.channels;
    Rows(tokens).over_rows([&](int64_t image, int64_t, int64_t at) {
        const float *scale = scales + image * row, *shift = shifts + image * row, *from = x + at;
        float* to = y + at;
        const Statistics s(from, c);
#pragma omp simd
        for (int64_t j = 0; j < c; ++j)
            to[j] = (from[j] - s.mean) * s.inverse_std * (1 + scale[j]) + shift[j];
    });
}

void sum_gated(Tokens tokens, const float* x, const float* branch, const float* gates, int64_t row,
               float* y) {
    const int64_t c = tokens.channels;
    Rows(tokens).over_rows([&](int64_t image, int64_t, int64_t at) {
        const float* gate = gates + image * row;
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) y[at + j] = x[at + j] + gate[j] * branch[at + j];
    });
}

RESULT_SHAPE(modulated_norm) { return arrays.shape(0); }

// x (B, L, C), scale (B, 1, C), shift (B, 1, C) -> norm(x) * (1 + scale) + shift
KERNEL(modulated_norm) {
    const Rows rows(arrays, 0);
    const float *x = arrays.get(0, rows.shape()), *scales = arrays.get(1, rows.one_token());
    const float* shifts = arrays.get(2, rows.one_token());
    norm_modulated(rows, x, scales, shifts, rows.channels, arrays.get(3, rows.shape()));
}

// gradient of the result, x, scale -> gradients of x, scale and shift
KERNEL(modulated_norm_grad) {
    const Rows rows(arrays, 0);
    const int64_t c = rows.channels;
    const float *grad = arrays.get(0, rows.shape()), *x = arrays.get(1, rows.shape());
    const float* scales = arrays.get(2, rows.one_token());
    float* grad_x = arrays.get(3, rows.shape());
    float *grad_scale = arrays.get(4, rows.one_token()),
          *grad_shift = arrays.get(5, rows.one_token());
    TokenSums of_scale(rows), of_shift(rows);
    rows.over_rows([&](int64_t image, int64_t chunk, int64_t row) {
        float *scale_sum = of_scale.part(image, chunk), *shift_sum = of_shift.part(image, chunk);
        const float *scale = scales + image * c, *from = x + row, *g = grad + row;
        float* to = grad_x + row;
        const Statistics s(from, c);
        float along = 0, constant = 0;
#pragma omp simd reduction(+ : along, constant)
        for (int64_t j = 0; j < c; ++j) {
            const float hat = (from[j] - s.mean) * s.inverse_std, d = g[j] * (1 + scale[j]);
            scale_sum[j] += g[j] * hat;
            shift_sum[j] += g[j];
            along += d * hat;
            constant += d;
        }
        along /= float(c), constant /= float(c);
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) {
            const float hat = (from[j] - s.mean) * s.inverse_std, d = g[j] * (1 + scale[j]);
            to[j] = s.inverse_std * (d - constant - hat * along);
        }
    });
    of_scale.add_up(grad_scale);
    of_shift.add_up(grad_shift);
}

RESULT_SHAPE(gated_sum) { return arrays.shape(0); }

// x (B, L, C), branch (B, L, C), gate (B, 1, C) -> x + gate * branch
KERNEL(gated_sum) {
    const Rows rows(arrays, 0);
    const float *x = arrays.get(0, rows.shape()), *branch = arrays.get(1, rows.shape());
    const float* gates = arrays.get(2, rows.one_token());
    sum_gated(rows, x, branch, gates, rows.channels, arrays.get(3, rows.shape()));
}

// gradient of the result, branch, gate -> gradients of branch and gate; that of x is the result's
KERNEL(gated_sum_grad) {
    const Rows rows(arrays, 0);
    const int64_t c = rows.channels;
    const float *grad = arrays.get(0, rows.shape()), *branch = arrays.get(1, rows.shape());
    const float* gates = arrays.get(2, rows.one_token());
    float *grad_branch = arrays.get(3, rows.shape()), *grad_gate = arrays.get(4, rows.one_token());
    TokenSums of_gate(rows);
    rows.over_rows([&](int64_t image, int64_t chunk, int64_t row) {
        const float* gate = gates + image * c;
        float* gate_sum = of_gate.part(image, chunk);
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) {
            grad_branch[row + j] = grad[row + j] * gate[j];
            gate_sum[j] += grad[row + j] * branch[row + j];
        }
    });
    of_gate.add_up(grad_gate);
}
