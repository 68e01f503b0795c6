// A block of the transformer for the tokens of one scale, in one call: MindSpore takes longer to
// start the twelve operators of a block than a small scale takes to compute.

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/buffer.h"
#include "common/kernel.h"
#include "layers.h"

namespace {

constexpr int64_t most_rows = 1024;         // at once, or the tokens of an image: bounds the memory
constexpr float most_scale = 4.605170186f;  // log 100

// Arrays 0 to 15 of `cached_block`, with these weights -> y (B, l, C)
void block_of(const Arrays& arrays, const Weight (&weights)[4], float* y) {
    const auto x_blc = arrays.sizes<3>(0);
    const int64_t images = x_blc[0], tokens = x_blc[1], c = x_blc[2];
    const int64_t heads = arrays.size(5), inner = arrays.sizes<2>(8)[0];
    const int64_t keys_row = arrays.sizes<4>(14)[3], length = arrays.sizes<4>(15)[2];
    const float *x = arrays.get(0, {images, tokens, c}),
                *modulation = arrays.get(1, {images, 6, c});
    const float *q_bias = arrays.get(3, {c}), *v_bias = arrays.get(4, {c});
    const float *scale = arrays.get(5, arrays.shape(5)), *proj_bias = arrays.get(7, {c});
    const float *bias_1 = arrays.get(9, {inner}), *bias_2 = arrays.get(11, {c});
    const int64_t begin = arrays.element<int32_t>(12);
    const bool unit_length = arrays.element<int32_t>(13);
    expect(heads > 0 && c % heads == 0);
    float* keys = arrays.get(14, {images, heads, c / heads, keys_row});
    float* values = arrays.get(15, {images, heads, length, c / heads});

    std::vector<float> qkv_bias(3 * c), scales(scale, scale + heads);
    std::copy_n(q_bias, c, qkv_bias.data());
    std::copy_n(v_bias, c, qkv_bias.data() + 2 * c);
    if (unit_length) {
        for (float& s : scales) s = std::exp(std::min(s, most_scale));
    }
    thread_local Buffer buffer;
    const int64_t most = std::max<int64_t>(1, most_rows / std::max<int64_t>(1, tokens));
    for (int64_t first = 0; first < images; first += most) {
        const Tokens group{std::min(most, images - first), tokens, c};
        const int64_t rows = group.images * tokens;
        float *narrow = buffer.floats(rows * (c + std::max(3 * c, inner))),
              *wide = narrow + rows * c;
        const float *in = x + first * tokens * c, *m = modulation + first * 6 * c;
        const float *gate_attn = m, *gate_ffn = m + c, *scale_attn = m + 2 * c,
                    *scale_ffn = m + 3 * c, *shift_attn = m + 4 * c, *shift_ffn = m + 5 * c;
        float* out = y + first * tokens * c;
        const Cache cache{keys + first * c * keys_row, values + first * c * length, keys_row,
                          length};

        norm_modulated(group, in, scale_attn, shift_attn, 6 * c, narrow);
        affine_of(rows, 3 * c, c, narrow, weights[0], qkv_bias.data(), wide);
        attend_cached(group, heads, unit_length, wide, scales.data(), begin, cache, narrow);
        affine_of(rows, c, c, narrow, weights[1], proj_bias, wide);
        sum_gated(group, in, wide, gate_attn, 6 * c, out);
        norm_modulated(group, out, scale_ffn, shift_ffn, 6 * c, narrow);
        affine_of(rows, inner, c, narrow, weights[2], bias_1, wide);
        gelu_of(rows * inner, wide, wide);
        affine_of(rows, c, inner, wide, weights[3], bias_2, narrow);
        sum_gated(group, out, narrow, gate_ffn, 6 * c, out);
    }
}

// Of queries, keys and values, of the projection, and of both maps of the network
constexpr int at_weight[4] = {2, 6, 8, 10};

Arrays::Shape weight_shape(const Arrays& arrays, int i) {
    const int64_t c = arrays.sizes<3>(0)[2], inner = arrays.sizes<2>(8)[0];
    const Arrays::Shape shapes[] = {{3 * c, c}, {c, c}, {inner, c}, {c, inner}};
    return shapes[i];
}

}  // namespace

RESULT_SHAPE(cached_block) { return arrays.shape(0); }

// x (B, l, C) of one scale; modulation (B, 6, C): gates, scales, shifts, each of attention and of
// the feed-forward network; weight of q, k and v (3 C, C), biases of q and of v (C); scale of the
// scores, of H numbers, its logarithm if vectors have unit length; weights and biases of the
// projection and of both maps of the network; begin (1) int32, unit length (1) int32, and the
// cache as of `cached_attention` -> (B, l, C)
KERNEL(cached_block) {
    Weight weights[4];
    for (int i = 0; i < 4; ++i)
        weights[i] = {arrays.get(at_weight[i], weight_shape(arrays, i)), Kind::float32, nullptr};
    block_of(arrays, weights, arrays.get(16, arrays.shape(0)));
}

// As `cached_block`, where the four weights are of any kind: after the cache their kinds (4) int32,
// and the scales of each, (0) unless it is int8
KERNEL(stored_block) {
    const int32_t* kinds = arrays.get<int32_t>(16, {4});
    Weight weights[4];
    for (int i = 0; i < 4; ++i)
        weights[i] = stored_weight(arrays, at_weight[i], weight_shape(arrays, i), kinds[i], 17 + i);
    block_of(arrays, weights, arrays.get(21, arrays.shape(0)));
}
