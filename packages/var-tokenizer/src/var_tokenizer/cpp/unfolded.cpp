#include "unfolded.h"

#include <algorithm>

#include "common/buffer.h"
#include "common/onednn.h"
#include "common/threads.h"

namespace unfolded {

namespace {

using direct::Shape;
using onednn::multiply;

constexpr int64_t most = 4 << 20;  // floats of columns at once: 16 MiB

// Never destroyed: a thread may be at work when the process ends.
Buffer &columns = *new Buffer, &turned = *new Buffer;

struct Map {
    int64_t y, x, c;
};

// The row of x that output `out` reads through a tap, or
int64_t read_by(const Shape& s, int64_t out, int64_t tap) {
    return out * s.stride + tap - s.before;
}

// the output that reads row `in` of x through it; negative if none does.
int64_t reader_of(const Shape& s, int64_t in, int64_t tap) {
    const int64_t distance = in + s.before - tap;
    return distance % s.stride ? -1 : distance / s.stride;
}

// The pixels of `from`, or zeros, that pixels first .. first + count - 1 of map `of` are sums of:
// (count, kernel, kernel, from.c). `source` finds them.
float* unfold(const Shape& s, int64_t first, int64_t count, const Map& of, const Map& from,
              const float* data, int64_t (*source)(const Shape&, int64_t, int64_t)) {
    const int64_t width = s.kernel * s.kernel * from.c;
    float* const to = columns.floats(count * width);
    constexpr int64_t part = 64;
    parallel_for((count + part - 1) / part, [&](int64_t job) {
        float* pixel = to + job * part * width;
        for (int64_t i = job * part; i < std::min(count, (job + 1) * part); ++i) {
            const int64_t row = (first + i) / of.x, image = row / of.y;
            for (int64_t tap = 0; tap < s.kernel * s.kernel; ++tap, pixel += from.c) {
                const int64_t y = source(s, row % of.y, tap / s.kernel);
                const int64_t x = source(s, (first + i) % of.x, tap % s.kernel);
                if (y < 0 || y >= from.y || x < 0 || x >= from.x) {
                    std::fill_n(pixel, from.c, 0.0f);
                } else {
                    std::copy_n(data + ((image * from.y + y) * from.x + x) * from.c, from.c, pixel);
                }
            }
        }
    });
    return to;
}

// weights (o, taps, c) -> (taps, o, c)
float* with_taps_first(const Shape& s, const float* weights) {
    const int64_t taps = s.kernel * s.kernel;
    float* to = turned.floats(s.o * taps * s.c);
    for (int64_t i = 0; i < taps * s.o; ++i) {
        std::copy_n(weights + (i % s.o * taps + i / s.o) * s.c, s.c, to + i * s.c);
    }
    return to;
}

}  // namespace

void convolve(direct::Pass pass, const Shape& s, float* src, float* weights, float* bias,
              float* dst) {
    const Map in{s.y, s.x, s.c}, out{s.out_y, s.out_x, s.o};
    const bool to_src = pass == direct::backward_data;
    const Map &of = to_src ? in : out, &from = to_src ? out : in;
    const int64_t pixels = s.b * of.y * of.x, width = s.kernel * s.kernel * from.c;
    const float* const turned_weights = to_src ? with_taps_first(s, weights) : nullptr;
    if (pass == direct::backward_weights) std::fill_n(bias, s.o, 0.0f);

    const int64_t at_once = std::max<int64_t>(1, most / width);
    for (int64_t first = 0; first < pixels; first += at_once) {
        const int64_t count = std::min(at_once, pixels - first);
        const float* const read =
            unfold(s, first, count, of, from, to_src ? dst : src, to_src ? reader_of : read_by);
        if (to_src) {
            multiply(count, s.c, width, {read, width}, {turned_weights, s.c}, 0, src + first * s.c);
            continue;
        }
        float* const rows = dst + first * s.o;
        if (pass == direct::forward) {
            for (int64_t i = 0; i < count; ++i) std::copy_n(bias, s.o, rows + i * s.o);
            multiply(count, s.o, width, {read, width}, {weights, width, true}, 1, rows);
        } else {
            multiply(s.o, width, count, {rows, s.o, true}, {read, width}, first > 0, weights);
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t j = 0; j < s.o; ++j) bias[j] += rows[i * s.o + j];
            }
        }
    }
}

}  // namespace unfolded
