// Nearest upsampling of channels-last maps.
#pragma once

#include <cstdint>

// The size of the map that is upsampled
struct Map {
    int64_t b, y, x, c;
};

// (b, y, x, c) -> (b, 2y, 2x, c): each pixel becomes 2x2
void upsample(const Map& map, const float* x, float* out);

// gradient of the result (b, 2y, 2x, c) -> gradient of x (b, y, x, c)
void upsample_grad(const Map& map, const float* grad, float* out);
