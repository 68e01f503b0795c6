// 3x3 convolutions of stride 1 with a quarter of the multiplications. Channels are those that
// `takes` takes; one call at a time.
#pragma once

#include <cstdint>

namespace winograd {

// x (b, y, x, c) -> (b, y, x, o), zeros around x
struct Shape {
    int64_t b, y, x, c, o;
    bool upsampled;  // whether x is stored at half of y and x, each of its pixels standing for 2x2

    int64_t tiles() const { return b * ((y + 3) / 4) * ((x + 3) / 4); }
};

// Whether these channels are whole vectors of x, and whole blocks of results.
bool takes(int64_t c, int64_t o);

// weight (o, 3, 3, c); bias (o) and plus, of the result's shape, are added if they are given.
void convolve(const Shape& shape, const float* x, const float* weight, const float* bias,
              const float* plus, float* out);

// The gradient of x of the convolution with weight (c, 3, 3, o), here of c results and o inputs.
void convolve_transposed(const Shape& shape, const float* x, const float* weight, float* out);

// The gradient of the weight (o, 3, 3, c), from that of the result.
void grad_weight(const Shape& shape, const float* x, const float* grad, float* out);

}  // namespace winograd
