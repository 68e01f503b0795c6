// The nearest code of a codebook.

#include <algorithm>
#include <limits>
#include <vector>

#include "common/kernel.h"
#include "common/threads.h"
#include "common/vector.h"

// vectors (N, z), codes (V, z) -> (N) int32: the first code at the smallest distance
KERNEL(nearest_code) {
    // vectors that are compared with `wide` codes at once: 8 sums at least are under way
    constexpr int64_t block = 4, wide = 2 * lanes;
    const int64_t n = arrays.sizes<2>(0)[0], z = arrays.sizes<2>(0)[1], v = arrays.sizes<2>(1)[0];
    const float *vectors = arrays.get(0, {n, z}), *codes = arrays.get(1, {v, z});
    int32_t* ids = arrays.get<int32_t>(2, {n});
    expect(v > 0);
    const int64_t tiles = (v + wide - 1) / wide;
    // `wide` codes side by side; those after the last are infinitely far away
    std::vector<float> columns(tiles * z * wide, 0.0f);
    std::vector<float> lengths(tiles * wide, std::numeric_limits<float>::infinity());
    for (int64_t k = 0; k < v; ++k) {
        float length = 0;
        for (int64_t i = 0; i < z; ++i) {
            const float value = codes[k * z + i];
            columns[((k / wide) * z + i) * wide + k % wide] = value;
            length += value * value;
        }
        lengths[k] = length;
    }
    parallel_for((n + block - 1) / block, [&](int64_t job) {
        const int64_t first = job * block;
        const int64_t count = std::min(block, n - first);
        const float* rows[block];
        for (int64_t q = 0; q < block; ++q) {
            rows[q] = vectors + (first + std::min(q, count - 1)) * z;
        }
        float least[block][wide];
        int32_t at[block][wide];
        for (int64_t q = 0; q < block; ++q) {
            std::fill_n(least[q], wide, std::numeric_limits<float>::infinity());
            std::fill_n(at[q], wide, 0);
        }
        for (int64_t t = 0; t < tiles; ++t) {
            float dot[block][wide] = {};
            for (int64_t i = 0; i < z; ++i) {
                const float* column = &columns[(t * z + i) * wide];
                for (int64_t q = 0; q < block; ++q) {
                    const float value = rows[q][i];
#pragma omp simd
                    for (int64_t j = 0; j < wide; ++j) dot[q][j] += value * column[j];
                }
            }
            for (int64_t q = 0; q < block; ++q) {
#pragma omp simd
                for (int64_t j = 0; j < wide; ++j) {
                    // |vector|^2 is the same for every code
                    const float distance = lengths[t * wide + j] - 2 * dot[q][j];
                    const bool closer = distance < least[q][j];
                    least[q][j] = closer ? distance : least[q][j];
                    at[q][j] = closer ? int32_t(t) : at[q][j];
                }
            }
        }
        for (int64_t q = 0; q < count; ++q) {
            float best = least[q][0];
            int32_t id = at[q][0] * int32_t(wide);
            for (int64_t j = 1; j < wide; ++j) {
                const int32_t other = at[q][j] * int32_t(wide) + int32_t(j);
                if (least[q][j] < best || (least[q][j] == best && other < id)) {
                    best = least[q][j];
                    id = other;
                }
            }
            ids[first + q] = id;
        }
    });
}
