// Convolutions of any size and stride by oneDNN.
#pragma once

#include <cstdint>

namespace direct {

struct Failure {};

enum Pass { forward, backward_data, backward_weights };

// x (b, y, x, c), weight (o, kernel, kernel, c) -> (b, out_y, out_x, o)
struct Shape {
    int64_t b, y, x, c, o, kernel, stride, before, out_y, out_x;
};

// src, weights, bias, dst, or their gradients, as the pass reads or writes them. One call at a
// time. Throws Failure where oneDNN refuses.
void convolve(Pass pass, const Shape& shape, float* src, float* weights, float* bias, float* dst);

}  // namespace direct
