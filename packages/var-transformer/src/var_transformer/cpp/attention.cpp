// Next-scale attention: a token sees its own and all coarser scales (arXiv:2404.02905, figure 4).
//
// A job is one head of one image. Scores exist for a few queries at a time, and the backward pass
// computes them again, so nothing of size L x L is ever stored (as in arXiv:2205.14135).

#include <cmath>
#include <vector>

#include "common/exponential.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "layers.h"
#include "products.h"

namespace {

constexpr int64_t group = 24;  // queries whose scores exist at once

// Memory that a thread keeps between jobs: new memory would cost page faults.
float* scratch(int64_t size) {
    thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < size) memory.resize(size);
    return memory.data();
}

struct Shape {
    int64_t images, tokens, heads, d;
    bool unit_length;

    // Of arrays qkv (B, L, 3 C), scale (H) and unit length (1)
    Shape(const Arrays& arrays, int qkv, int scale, int unit) {
        const auto qkv_blc = arrays.sizes<3>(qkv);
        images = qkv_blc[0], tokens = qkv_blc[1], heads = arrays.sizes<1>(scale)[0];
        d = heads ? qkv_blc[2] / (3 * heads) : 0;
        unit_length = arrays.element<int32_t>(unit);
        // products write whole vectors
        expect(d > 0 && d % lanes == 0 && qkv_blc[2] == 3 * width());
    }

    Shape(Tokens of, int64_t heads, bool unit_length)
        : images(of.images),
          tokens(of.tokens),
          heads(heads),
          d(of.channels / heads),
          unit_length(unit_length) {
        expect(d > 0 && d % lanes == 0 && of.channels == width());
    }

    int64_t width() const { return heads * d; }
    Arrays::Shape qkv() const { return {images, tokens, 3 * width()}; }
    Arrays::Shape mixed() const { return {images, tokens, width()}; }
    Arrays::Shape log_sums() const { return {images, heads, tokens}; }
};

constexpr float shortest = 1e-12f;  // length of a vector, at least

// One over the length of a vector.
float inverse_length(const float* x, int64_t d) {
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < d; ++j) square += x[j] * x[j];
    return 1 / std::max(std::sqrt(square), shortest);
}

// The rows of one head of one image within (B, L, 3 C) and (B, L, C), and copies of them.
struct Head {
    const Shape& s;
    int64_t image, head;

    const float* row(const float* qkv, int64_t part, int64_t token) const {
        return qkv + ((image * s.tokens + token) * 3 + part) * s.width() + head * s.d;
    }
    float* row(float* qkv, int64_t part, int64_t token) const {
        return const_cast<float*>(row(static_cast<const float*>(qkv), part, token));
    }
    int64_t merged(int64_t token) const {
        return (image * s.tokens + token) * s.width() + head * s.d;
    }

    float factor(const float* x, float scale) const {
        return s.unit_length ? scale * inverse_length(x, s.d) : scale;
    }

    void copy(const float* x, float factor, float* to) const {
#pragma omp simd
        for (int64_t j = 0; j < s.d; ++j) to[j] = factor * x[j];
    }

    void copy_across(const float* x, float factor, float* to, int64_t to_row) const {
        for (int64_t j = 0; j < s.d; ++j) to[j * to_row] = factor * x[j];
    }

    void queries(const float* qkv, float scale, float* q_ld) const {
        for (int64_t t = 0; t < s.tokens; ++t) {
            const float* x = row(qkv, 0, t);
            copy(x, factor(x, scale), q_ld + t * s.d);
        }
    }
};

// The first `keys` of a row to exponentials, in place: a softmax that is not yet divided by its
// sum. Returns the sum, and the logarithm of the sum of exponentials.
struct Sum {
    float total, log;
};
Sum exponentials(float* row, int64_t keys) {
    float top = row[0], total = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < keys; ++i) top = std::max(top, row[i]);
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < keys; ++i) {
        row[i] = exponential(row[i] - top);
        total += row[i];
    }
    return {total, top + std::log(total)};
}

// Values mixed for queries `begin` to `end` over the first `keys` keys.
void attend(const Head& h, int64_t begin, int64_t end, int64_t keys, const float* q_ld,
            const float* keys_dl, int64_t keys_row, const float* values_ld, float* scores,
            float* mixed_blc, float* log_sums_l) {
    const int64_t d = h.s.d, scores_row = whole_vectors(keys);
    for (int64_t first = begin; first < end; first += group) {
        const int64_t rows = std::min(group, end - first);
        multiply(rows, keys, d, {q_ld + first * d, d, 1}, keys_dl, keys_row, scores, scores_row);
        float totals[group];
        for (int64_t i = 0; i < rows; ++i) {
            const Sum sum = exponentials(scores + i * scores_row, keys);
            totals[i] = sum.total;
            if (log_sums_l) log_sums_l[first + i] = sum.log;
        }
        float* to = mixed_blc + h.merged(first);
        multiply(rows, d, keys, {scores, scores_row, 1}, values_ld, d, to, h.s.width());
        for (int64_t i = 0; i < rows; ++i)
            h.copy(to + i * h.s.width(), 1 / totals[i], to + i * h.s.width());
    }
}

// Array i: where each scale begins, then the end. The tokens may be the first scales only.
const int32_t* offsets_of(const Arrays& arrays, int i, int64_t tokens) {
    const int64_t count = arrays.sizes<1>(i)[0];
    const int32_t *begin = arrays.get<int32_t>(i, {count}), *end = begin + count;
    expect(count > 0 && *begin == 0 && std::is_sorted(begin, end));
    expect(std::find(begin, end, tokens) != end);
    return begin;
}

// work(first token, token after the last) for every scale
template <typename Work>
void over_scales(const int32_t* offsets, int64_t tokens, Work work) {
    for (int64_t k = 0; offsets[k] < tokens; ++k) work(offsets[k], offsets[k + 1]);
}

}  // namespace

// qkv (B, L, 3 C), scale (H), offsets (K + 1) int32, unit length (1) int32
// -> mixed (B, L, C), logarithms of the sums of the exponentials (B, H, L)
KERNEL(next_scale_attention) {
    const Shape s(arrays, 0, 1, 3);
    const float *qkv = arrays.get(0, s.qkv()), *scales = arrays.get(1, {s.heads});
    const int32_t* offsets = offsets_of(arrays, 2, s.tokens);
    float *mixed = arrays.get(4, s.mixed()), *log_sums = arrays.get(5, s.log_sums());
    parallel_for(s.images * s.heads, [&](int64_t job) {
        const Head h{s, job / s.heads, job % s.heads};
        const int64_t l = s.tokens, d = s.d, padded = whole_vectors(l);
        float* memory = scratch(2 * l * d + d * padded + group * padded);
        float *q_ld = memory, *v_ld = q_ld + l * d, *k_dl = v_ld + l * d,
              *scores = k_dl + d * padded;
        h.queries(qkv, scales[h.head], q_ld);
        for (int64_t t = 0; t < l; ++t) {
            const float* k = h.row(qkv, 1, t);
            h.copy_across(k, h.factor(k, 1), k_dl + t, padded);
            h.copy(h.row(qkv, 2, t), 1, v_ld + t * d);
        }
        over_scales(offsets, l, [&](int64_t begin, int64_t end) {
            attend(h, begin, end, end, q_ld, k_dl, padded, v_ld, scores, mixed, log_sums + job * l);
        });
    });
}

// gradient of mixed (B, L, C), qkv, scale, offsets, unit length, logarithms
// -> gradients of qkv and of scale
KERNEL(next_scale_attention_grad) {
    const Shape s(arrays, 1, 2, 4);
    const float *grad = arrays.get(0, s.mixed()), *qkv = arrays.get(1, s.qkv());
    const float* scales = arrays.get(2, {s.heads});
    const int32_t* offsets = offsets_of(arrays, 3, s.tokens);
    const float* log_sums = arrays.get(5, s.log_sums());
    float *grad_qkv = arrays.get(6, s.qkv()), *grad_scale = arrays.get(7, {s.heads});
    std::vector<double> scale_sums(s.images * s.heads);
    parallel_for(s.images * s.heads, [&](int64_t job) {
        const Head h{s, job / s.heads, job % s.heads};
        const int64_t l = s.tokens, d = s.d, padded = whole_vectors(l);
        float* memory = scratch(6 * l * d + 2 * d * padded + 2 * group * padded);
        float *q_ld = memory, *k_ld = q_ld + l * d,
              *out_ld = k_ld + l * d;  // out: gradient of mixed
        float *dq_ld = out_ld + l * d, *dk_ld = dq_ld + l * d, *dv_ld = dk_ld + l * d;
        float *k_dl = dv_ld + l * d, *v_dl = k_dl + d * padded, *scores = v_dl + d * padded;
        float* dscores = scores + group * padded;
        h.queries(qkv, scales[h.head], q_ld);
        for (int64_t t = 0; t < l; ++t) {
            const float* k = h.row(qkv, 1, t);
            h.copy(k, h.factor(k, 1), k_ld + t * d);
            h.copy_across(k_ld + t * d, 1, k_dl + t, padded);
            h.copy_across(h.row(qkv, 2, t), 1, v_dl + t, padded);
            h.copy(grad + h.merged(t), 1, out_ld + t * d);
        }
        std::fill_n(dk_ld, 2 * l * d, 0.0f);
        over_scales(offsets, l, [&](int64_t begin, int64_t end) {
            for (int64_t first = begin; first < end; first += group) {
                const int64_t rows = std::min(group, end - first), row = whole_vectors(end);
                const float *q = q_ld + first * d, *out = out_ld + first * d;
                multiply(rows, end, d, {q, d, 1}, k_dl, padded, scores, row);
                multiply(rows, end, d, {out, d, 1}, v_dl, padded, dscores, row);
                for (int64_t i = 0; i < rows; ++i) {
                    const float log_sum = log_sums[job * l + first + i];
                    float *p = scores + i * row, *dp = dscores + i * row, total = 0, along = 0;
#pragma omp simd reduction(+ : total, along)
                    for (int64_t j = 0; j < end; ++j) {
                        p[j] = exponential(p[j] - log_sum);
                        total += p[j];
                        along += p[j] * dp[j];
                    }
                    // The sum is 1 but for the rounded logarithm. Gradients that add up to 0 to the
                    // last digit matter where they are multiplied by large scores.
                    const float inverse = 1 / total;
                    along *= inverse;
#pragma omp simd
                    for (int64_t j = 0; j < end; ++j) {
                        p[j] *= inverse;
                        dp[j] = p[j] * (dp[j] - along);
                    }
                }
                multiply(rows, d, end, {dscores, row, 1}, k_ld, d, dq_ld + first * d, d);
                multiply(end, d, rows, {scores, 1, row}, out, d, dv_ld, d, true);
                multiply(end, d, rows, {dscores, 1, row}, q, d, dk_ld, d, true);
            }
        });
        double scale_sum = 0;
        for (int64_t t = 0; t < l; ++t) {
            h.copy(dv_ld + t * d, 1, h.row(grad_qkv, 2, t));
            const float* grads[] = {dq_ld, dk_ld};
            for (int part = 0; part < 2; ++part) {
                // y = scale u, where u is x or x / max(|x|, 1e-12). The gradient of the latter has
                // no part along x, unless |x| is below 1e-12.
                const float *x = h.row(qkv, part, t), *dy = grads[part] + t * d;
                const float scale = part ? 1 : scales[h.head], factor = h.factor(x, 1);
                float dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t j = 0; j < d; ++j) dot += factor * x[j] * dy[j];
                if (part == 0) scale_sum += dot;
                const bool unit = s.unit_length && factor < 1 / shortest;
                const float share = unit ? dot * factor : 0, times = factor * scale;
                float* to = h.row(grad_qkv, part, t);
#pragma omp simd
                for (int64_t j = 0; j < d; ++j) to[j] = times * (dy[j] - share * x[j]);
            }
        }
        scale_sums[job] = scale_sum;
    });
    for (int64_t head = 0; head < s.heads; ++head) {
        double sum = 0;
        for (int64_t b = 0; b < s.images; ++b) sum += scale_sums[b * s.heads + head];
        grad_scale[head] = float(sum);
    }
}

void attend_cached(Tokens of, int64_t heads, bool unit_length, const float* qkv,
                   const float* scales, int64_t begin, Cache cache, float* mixed) {
    const Shape s(of, heads, unit_length);
    const int64_t keys_row = cache.keys_row, end = begin + s.tokens;
    expect(begin >= 0 && end <= std::min(cache.length, keys_row) && keys_row % lanes == 0);
    parallel_for(s.images * s.heads, [&](int64_t job) {
        const Head h{s, job / s.heads, job % s.heads};
        const int64_t d = s.d;
        float *k_dl = cache.keys + job * d * keys_row,
              *v_ld = cache.values + job * cache.length * d;
        float* q_ld = scratch(s.tokens * d + group * whole_vectors(end));
        h.queries(qkv, scales[h.head], q_ld);
        for (int64_t t = 0; t < s.tokens; ++t) {
            const float* k = h.row(qkv, 1, t);
            h.copy_across(k, h.factor(k, 1), k_dl + begin + t, keys_row);
            h.copy(h.row(qkv, 2, t), 1, v_ld + (begin + t) * d);
        }
        attend(h, 0, s.tokens, end, q_ld, k_dl, keys_row, v_ld, q_ld + s.tokens * d, mixed,
               nullptr);
    });
}

RESULT_SHAPE(cached_attention) {
    auto shape = arrays.shape(0);
    shape.back() /= 3;
    return shape;
}

// qkv (B, l, 3 C) of one scale, scale (H), begin (1) int32, unit length (1) int32, and the cache,
// keys (B, H, d, L') and values (B, H, L, d): token `begin` and later ones are written there
// -> mixed (B, l, C)
KERNEL(cached_attention) {
    const Shape s(arrays, 0, 1, 3);
    const float *qkv = arrays.get(0, s.qkv()), *scales = arrays.get(1, {s.heads});
    const int64_t begin = arrays.element<int32_t>(2);
    const int64_t keys_row = arrays.sizes<4>(4)[3], length = arrays.sizes<4>(5)[2];
    float* keys = arrays.get(4, {s.images, s.heads, s.d, keys_row});
    float* values = arrays.get(5, {s.images, s.heads, length, s.d});
    attend_cached({s.images, s.tokens, s.width()}, s.heads, s.unit_length, qkv, scales, begin,
                  {keys, values, keys_row, length}, arrays.get(6, s.mixed()));
}
