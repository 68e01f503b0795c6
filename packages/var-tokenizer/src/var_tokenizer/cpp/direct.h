// Convolutions of any size and stride by oneDNN.
#pragma once

#include <algorithm>
#include <cstdint>

namespace direct {

enum Pass { forward, backward_data, backward_weights };

// x (b, y, x, c), weight (o, kernel, kernel, c) -> (b, out_y, out_x, o)
struct Shape {
    int64_t b, y, x, c, o, kernel, stride, before, out_y, out_x;

    // Rows and columns of x up to the last that an output reads
    int64_t read_y() const { return read(y, out_y); }
    int64_t read_x() const { return read(x, out_x); }

   private:
    int64_t read(int64_t size, int64_t outputs) const {
        return std::min(size, (outputs - 1) * stride + kernel - before);
    }
};

// src, weights, bias, dst, or their gradients, as the pass reads or writes them. One call at a
// time. No size is 0, and some output reads a pixel. Throws if oneDNN refuses.
void convolve(Pass pass, const Shape& shape, float* src, float* weights, float* bias, float* dst);

}  // namespace direct
