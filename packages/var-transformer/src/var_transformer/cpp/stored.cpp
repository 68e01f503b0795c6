// Affine maps whose weight lies in memory as a file holds it: float32, float16, bfloat16 or int8.
//
// As many outputs as a part of it has are widened into a buffer that stays in the cache, and
// multiplied as float32: all sums are those of a weight that was widened as a whole.

#include <algorithm>
#include <cstring>

#include "common/buffer.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "layers.h"

namespace {

constexpr int64_t part_size = 1 << 20;  // numbers of a part, 4 MiB as float32
constexpr int64_t part_multiple = 96;   // its outputs, whole jobs of two threads in linear.cpp
constexpr int64_t together = 16;        // outputs that a thread widens

float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

void widen_halves(int64_t size, const uint16_t* from, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        const uint32_t sign = uint32_t(from[i] & 0x8000) << 16, rest = from[i] & 0x7fff;
        constexpr uint32_t rebias = (127 - 15) << 23;
        // twice for infinity and NaN, whose exponent is the largest of either type
        const uint32_t normal = (rest << 13) + rebias + (rest >= 0x7c00 ? rebias : 0);
        // a multiple of 2^-24, which is the last bit of a number from 1/2 to 1
        const uint32_t small = as_bits(as_float(0x3f000000 | rest) - 0.5f);
        to[i] = as_float((rest < 0x400 ? small : normal) | sign);
    }
}

void widen_bfloats(int64_t size, const uint16_t* from, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) to[i] = as_float(uint32_t(from[i]) << 16);
}

void widen_integers(int64_t size, const int8_t* from, float scale, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) to[i] = scale * float(from[i]);
}

// Row `output` of a weight
void widen(const Weight& weight, int64_t output, int64_t depth, float* to) {
    const int64_t at = output * depth;
    if (weight.kind == Kind::int8) {
        widen_integers(depth, static_cast<const int8_t*>(weight.data) + at, weight.scales[output],
                       to);
    } else if (weight.kind == Kind::float16) {
        widen_halves(depth, static_cast<const uint16_t*>(weight.data) + at, to);
    } else {
        widen_bfloats(depth, static_cast<const uint16_t*>(weight.data) + at, to);
    }
}

}  // namespace

void affine_of(int64_t rows, int64_t outputs, int64_t depth, const float* x, Weight weight,
               const float* bias, float* y) {
    if (weight.kind == Kind::float32)
        return affine(rows, outputs, depth, x, static_cast<const float*>(weight.data), bias, y);
    thread_local Buffer buffer;
    const int64_t part_outputs =
        std::max<int64_t>(1, part_size / std::max<int64_t>(1, depth) / part_multiple) *
        part_multiple;
    for (int64_t first = 0; first < outputs; first += part_outputs) {
        const int64_t high = std::min(part_outputs, outputs - first);
        float *part = buffer.floats(part_outputs * (depth + rows)), *of_part = part + high * depth;
        const int64_t jobs = (high + together - 1) / together;
        parallel_for_if(worth_threads(high * depth), jobs, [&](int64_t job) {
            const int64_t end = std::min(high, (job + 1) * together);
            for (int64_t n = job * together; n < end; ++n)
                widen(weight, first + n, depth, part + n * depth);
        });
        affine(rows, high, depth, x, part, bias + first, of_part);
        for (int64_t i = 0; i < rows; ++i)
            std::copy_n(of_part + i * high, high, y + i * outputs + first);
    }
}

Weight stored_weight(const Arrays& arrays, int at, const Arrays::Shape& shape, int32_t kind,
                     int at_scales) {
    static const char* const types[] = {"float32", "float16", "uint16", "int8"};  // as of Kind
    expect(kind >= 0 && kind <= int32_t(Kind::int8));
    const bool scaled = Kind(kind) == Kind::int8;
    const float* scales = arrays.get(at_scales, {scaled ? shape[0] : 0});
    return {arrays.get_as(types[kind], at, shape), Kind(kind), scales};
}

// x (..., K), weight (N, K), its kind (1) int32, its scales (N) or (0), bias (N) -> (..., N)
KERNEL(stored_linear) {
    auto x_shape = arrays.shape(0), y_shape = x_shape;
    const auto [outputs, depth] = arrays.sizes<2>(1);
    expect(!x_shape.empty() && x_shape.back() == depth);
    y_shape.back() = outputs;
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < x_shape.size(); ++i) rows *= x_shape[i];
    const Weight weight = stored_weight(arrays, 1, {outputs, depth}, arrays.element<int32_t>(2), 3);
    affine_of(rows, outputs, depth, arrays.get(0, x_shape), weight, arrays.get(4, {outputs}),
              arrays.get(5, y_shape));
}
