#include "upsampling.h"

#include <algorithm>

#include "common/threads.h"

void upsample(const Map& map, const float* x, float* out) {
    const int64_t width = map.x, c = map.c;
    parallel_for(map.b * map.y, [&](int64_t y) {
        float* to = out + y * 4 * width * c;
        for (int64_t i = 0; i < width; ++i) {
            const float* from = x + (y * width + i) * c;
            std::copy(from, from + c, to + 2 * i * c);
            std::copy(from, from + c, to + (2 * i + 1) * c);
        }
        std::copy(to, to + 2 * width * c, to + 2 * width * c);
    });
}

void upsample_grad(const Map& map, const float* grad, float* out) {
    const int64_t width = map.x, c = map.c;
    parallel_for(map.b * map.y, [&](int64_t y) {
        for (int64_t i = 0; i < width; ++i) {
            const float* above = grad + (y * 4 * width + 2 * i) * c;
            const float* below = above + 2 * width * c;
            float* to = out + (y * width + i) * c;
#pragma omp simd
            for (int64_t j = 0; j < c; ++j) {
                to[j] = above[j] + above[c + j] + below[j] + below[c + j];
            }
        }
    });
}
