// The operators of a block as functions, for the kernel that does all of them (block.cpp). Arrays
// are dense; any thread may call at any time.
#pragma once

#include <cstdint>

#include "common/kernel.h"

// y (rows x outputs) = x (rows x depth) weight^T (outputs x depth) + bias
void affine(int64_t rows, int64_t outputs, int64_t depth, const float* x, const float* weight,
            const float* bias, float* y);

// A weight as a file holds it, and for int8 the scale of each of its outputs.
enum class Kind : int32_t { float32, float16, bfloat16, int8 };
struct Weight {
    const void* data;
    Kind kind;
    const float* scales;
};

// Array `at` of this shape as a weight, whose scales, none unless it is int8, are another array.
Weight stored_weight(const Arrays&, int at, const Arrays::Shape&, int32_t kind, int at_scales);

// The same by a weight of any kind, which is widened to float32 a part at a time
void affine_of(int64_t rows, int64_t outputs, int64_t depth, const float* x, Weight weight,
               const float* bias, float* y);

void gelu_of(int64_t size, const float* x, float* y);

// Tokens of a batch, (images, tokens, channels)
struct Tokens {
    int64_t images, tokens, channels;
};

// y = norm(x) * (1 + scale) + shift; from an image's scale and shift to the next's it is `row`
void norm_modulated(Tokens, const float* x, const float* scales, const float* shifts, int64_t row,
                    float* y);

// y = x + gate * branch; from an image's gate to the next's it is `row`
void sum_gated(Tokens, const float* x, const float* branch, const float* gates, int64_t row,
               float* y);

// Keys (B, H, d, keys_row) and values (B, H, length, d) of the tokens so far
struct Cache {
    float *keys, *values;
    int64_t keys_row, length;
};

// qkv (B, l, 3 C) of the tokens from `begin` on, which are added to the cache -> mixed (B, l, C).
// Throws std::invalid_argument if they do not fit.
void attend_cached(Tokens, int64_t heads, bool unit_length, const float* qkv, const float* scales,
                   int64_t begin, Cache, float* mixed);
