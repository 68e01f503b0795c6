// Winograd's minimal filtering F(4x4, 3x3) (arXiv:1509.09308): 36 products give 16 pixels.
//
// A tile of 6x6 pixels goes over into the values of its polynomial at 6x6 points, as does each
// kernel of 3x3; the products of the two, summed over the channels, are 36 matrix products; what
// they give goes back into 4x4 pixels of the result. The points are 0, +-1/sqrt(2), +-sqrt(2) and
// infinity: errors are 5 times those of a direct convolution, half of those at 0, +-1, +-2.

#include "winograd.h"

#include <algorithm>

#include "buffer.h"
#include "threads.h"

namespace winograd {

namespace {

using Lanes = float __attribute__((vector_size(64), aligned(4), may_alias));

constexpr int lanes = 16;     // channels in a vector
constexpr int block = 32;     // output channels whose products are taken together
constexpr int max_rows = 14;  // tiles in one product: 14 x 2 sums, 2 vectors of U and one of V
constexpr int points = 36;
constexpr int group_size = 28;  // tiles at most whose values one thread holds at once,
constexpr int gradient_group_size = 56;  // and for the gradient of the weights
constexpr float near = 0.70710678f, far = 1.41421356f;

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

// The values at the six points, of six pixels,
inline void transform_pixels(const Lanes (&d)[6], Lanes (&v)[6]) {
    const Lanes even_near = d[4] - 2.0f * d[2], odd_near = near * d[3] - far * d[1];
    const Lanes even_far = d[4] - 0.5f * d[2], odd_far = far * d[3] - near * d[1];
    v[0] = d[0] - 2.5f * d[2] + d[4];
    v[1] = even_near + odd_near;
    v[2] = even_near - odd_near;
    v[3] = even_far + odd_far;
    v[4] = even_far - odd_far;
    v[5] = d[1] - 2.5f * d[3] + d[5];
}

// of three weights,
inline void transform_weights(const Lanes (&g)[3], Lanes (&u)[6]) {
    const Lanes even_near = (g[0] + 0.5f * g[2]) * (-2.0f / 3), odd_near = g[1] * (near * -2 / 3);
    const Lanes even_far = (g[0] + 2.0f * g[2]) * (1.0f / 6), odd_far = g[1] * (far / 6);
    u[0] = g[0];
    u[1] = even_near + odd_near;
    u[2] = even_near - odd_near;
    u[3] = even_far + odd_far;
    u[4] = even_far - odd_far;
    u[5] = g[2];
}

// and from the products at the six points to four pixels.
inline void transform_products(const Lanes (&m)[6], Lanes (&y)[4]) {
    const Lanes sum_near = m[1] + m[2], difference_near = m[1] - m[2];
    const Lanes sum_far = m[3] + m[4], difference_far = m[3] - m[4];
    y[0] = m[0] + sum_near + sum_far;
    y[1] = near * difference_near + far * difference_far;
    y[2] = 0.5f * sum_near + 2.0f * sum_far;
    y[3] = (near / 2) * difference_near + (far * 2) * difference_far + m[5];
}

// The transposes of these two, for the gradient: four pixels' to the products at six points,
inline void transform_gradients(const Lanes (&y)[4], Lanes (&m)[6]) {
    const Lanes even_near = y[0] + 0.5f * y[2], odd_near = near * (y[1] + 0.5f * y[3]);
    const Lanes even_far = y[0] + 2.0f * y[2], odd_far = far * (y[1] + 2.0f * y[3]);
    m[0] = y[0];
    m[1] = even_near + odd_near;
    m[2] = even_near - odd_near;
    m[3] = even_far + odd_far;
    m[4] = even_far - odd_far;
    m[5] = y[3];
}

// and those at six points to three weights'.
inline void transform_values(const Lanes (&u)[6], Lanes (&g)[3]) {
    const Lanes sum_near = u[1] + u[2], sum_far = u[3] + u[4];
    g[0] = u[0] - (2.0f / 3) * sum_near + (1.0f / 6) * sum_far;
    g[1] = (near * -2 / 3) * (u[1] - u[2]) + (far / 6) * (u[3] - u[4]);
    g[2] = u[5] + (1.0f / 3) * (sum_far - sum_near);
}

// Three rows of three weights to U (points, c, block), at one of its input channels
void transform_kernel(const Lanes (&g)[9], int64_t c, float* u) {
    Lanes columns[6][3];
    for (int x = 0; x < 3; ++x) {
        const Lanes column[3] = {g[x], g[3 + x], g[6 + x]};
        Lanes along[6];
        transform_weights(column, along);
        for (int p = 0; p < 6; ++p) columns[p][x] = along[p];
    }
    for (int p = 0; p < 6; ++p) {
        Lanes values[6];
        transform_weights(columns[p], values);
        for (int q = 0; q < 6; ++q) store(u + (p * 6 + q) * c * block, values[q]);
    }
}

// weight (o, 3, 3, c) -> U (o / block, points, c, block)
void transform_all_weights(const Shape& s, const float* weight, float* u) {
    const int64_t vectors = s.o / lanes;
    parallel_for(vectors * (s.c / lanes), [&](int64_t job) {
        const int64_t o = job % vectors * lanes, c = job / vectors * lanes;
        alignas(64) float turned[lanes][9][lanes];  // input channels, taps, output channels
        for (int i = 0; i < lanes; ++i) {
            for (int tap = 0; tap < 9; ++tap) {
                const float* from = weight + ((o + i) * 9 + tap) * s.c + c;
                for (int j = 0; j < lanes; ++j) turned[j][tap][i] = from[j];
            }
        }
        for (int j = 0; j < lanes; ++j) {
            Lanes g[9];
            for (int tap = 0; tap < 9; ++tap) g[tap] = load(turned[j][tap]);
            transform_kernel(g, s.c, u + (o / block * points * s.c + c + j) * block + o % block);
        }
    });
}

// As before, of the weight (c, 3, 3, o) of the convolution whose transpose is wanted
void transform_transposed_weights(const Shape& s, const float* weight, float* u) {
    parallel_for(s.c, [&](int64_t c) {
        for (int64_t o = 0; o < s.o; o += lanes) {
            Lanes g[9];
            for (int tap = 0; tap < 9; ++tap) g[tap] = load(weight + (c * 9 + 8 - tap) * s.o + o);
            transform_kernel(g, s.c, u + (o / block * points * s.c + c) * block + o % block);
        }
    });
}

// Tiles first .. first + count - 1 of all images, row by row, in blocks of nearly equal size
struct Group {
    int64_t first, count, blocks;
    Group(int64_t begin, int64_t end, int64_t most)
        : first(begin), count(end - begin), blocks((count + most - 1) / most) {}
    int64_t begin(int64_t i) const { return count * i / blocks; }
    int64_t rows(int64_t i) const { return begin(i + 1) - begin(i); }
};

// The pixels of a group -> V (points, blocks, c / lanes, rows, lanes)
void transform_tiles(const Shape& s, const Group& group, const float* x, float* v) {
    const int64_t across = (s.x + 3) / 4, down = (s.y + 3) / 4, halve = s.upsampled ? 1 : 0;
    const int64_t stored_x = s.x >> halve, stored_y = s.y >> halve;
    for (int64_t i = 0; i < group.blocks; ++i) {
        const int64_t rows = group.rows(i);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t tile = group.first + group.begin(i) + r;
            const int64_t top = tile / across % down * 4 - 1, left = tile % across * 4 - 1;
            const float* image = x + tile / across / down * stored_y * stored_x * s.c;
            const float* at[6][6];
            for (int64_t p = 0; p < 6; ++p) {
                for (int64_t q = 0; q < 6; ++q) {
                    const int64_t row = top + p, column = left + q;
                    const bool inside = row >= 0 && row < s.y && column >= 0 && column < s.x;
                    at[p][q] = inside ? image + ((row >> halve) * stored_x + (column >> halve)) * s.c
                                      : nullptr;
                }
            }
            float* to = v + group.begin(i) * s.c + r * lanes;
            for (int64_t c = 0; c < s.c; c += lanes) {
                Lanes columns[6][6];
                for (int q = 0; q < 6; ++q) {
                    Lanes d[6], along[6];
                    for (int p = 0; p < 6; ++p) d[p] = at[p][q] ? load(at[p][q] + c) : Lanes{};
                    transform_pixels(d, along);
                    for (int p = 0; p < 6; ++p) columns[p][q] = along[p];
                }
                for (int p = 0; p < 6; ++p) {
                    Lanes values[6];
                    transform_pixels(columns[p], values);
                    for (int q = 0; q < 6; ++q) {
                        store(to + (p * 6 + q) * group.count * s.c + c * rows, values[q]);
                    }
                }
            }
        }
    }
}

// (rows, c) of V times (c, block) of U -> (rows, block)
template <int rows>
void multiply(int64_t c, const float* v, const float* u, float* m) {
    Lanes sums[rows][2] = {};
    for (int64_t i = 0; i < c / lanes; ++i, v += rows * lanes, u += lanes * block) {
#pragma GCC unroll 4
        for (int j = 0; j < lanes; ++j) {
            const Lanes left = load(u + j * block), right = load(u + j * block + lanes);
#pragma GCC unroll 14
            for (int r = 0; r < rows; ++r) {
                sums[r][0] += v[r * lanes + j] * left;
                sums[r][1] += v[r * lanes + j] * right;
            }
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r) {
        store(m + r * block, sums[r][0]);
        store(m + r * block + lanes, sums[r][1]);
    }
}

using Multiply = void (*)(int64_t, const float*, const float*, float*);
constexpr Multiply multiply_rows[max_rows + 1] = {
    nullptr,     multiply<1>, multiply<2>,  multiply<3>,  multiply<4>,
    multiply<5>, multiply<6>, multiply<7>,  multiply<8>,  multiply<9>,
    multiply<10>, multiply<11>, multiply<12>, multiply<13>, multiply<14>,
};

// Products M (points, count, block) -> channels o .. o + block - 1 of the group's pixels
void transform_products_of(const Shape& s, const Group& group, const float* m, int64_t o,
                     const float* bias, const float* plus, float* out) {
    const int64_t across = (s.x + 3) / 4, down = (s.y + 3) / 4;
    for (int64_t t = 0; t < group.count; ++t) {
        const int64_t tile = group.first + t;
        const int64_t top = tile / across % down * 4, left = tile % across * 4;
        const int64_t corner = ((tile / across / down * s.y + top) * s.x + left) * s.o + o;
        const int64_t rows = std::min<int64_t>(4, s.y - top);
        const int64_t columns = std::min<int64_t>(4, s.x - left);
        for (int64_t half = 0; half < block; half += lanes) {
            Lanes down_columns[4][6];
            for (int q = 0; q < 6; ++q) {
                Lanes products[6], along[4];
                for (int p = 0; p < 6; ++p) {
                    products[p] = load(m + ((p * 6 + q) * group.count + t) * block + half);
                }
                transform_products(products, along);
                for (int p = 0; p < 4; ++p) down_columns[p][q] = along[p];
            }
            const Lanes added = bias ? load(bias + o + half) : Lanes{};
            for (int p = 0; p < rows; ++p) {
                Lanes pixels[4];
                transform_products(down_columns[p], pixels);
                for (int q = 0; q < columns; ++q) {
                    const int64_t to = corner + (p * s.x + q) * s.o + half;
                    const Lanes value = pixels[q] + added;
                    store(out + to, plus ? value + load(plus + to) : value);
                }
            }
        }
    }
}

// The convolution with the weights U
void convolve_transformed(const Shape& s, const float* x, const float* u, const float* bias,
                          const float* plus, float* out) {
    const int64_t tiles = s.tiles(), at_once = group_size * thread_count();
    const int64_t rounds = (tiles + at_once - 1) / at_once;  // all threads end at the same time
    const int64_t groups = std::min(tiles, rounds * thread_count());
    parallel_for(groups, [&](int64_t job) {
        thread_local Buffer pixels, products;
        const Group group(tiles * job / groups, tiles * (job + 1) / groups, max_rows);
        float* v = pixels.floats(points * group.count * s.c);
        float* m = products.floats(points * group.count * block);
        transform_tiles(s, group, x, v);
        for (int64_t o = 0; o < s.o; o += block) {
            for (int p = 0; p < points; ++p) {
                for (int64_t i = 0; i < group.blocks; ++i) {
                    const int64_t begin = group.begin(i);
                    multiply_rows[group.rows(i)](s.c, v + (p * group.count + begin) * s.c,
                                                 u + (o * points + p * block) * s.c,
                                                 m + (p * group.count + begin) * block);
                }
            }
            transform_products_of(s, group, m, o, bias, plus, out);
        }
    });
}

// The gradient of the group's pixels, channels o .. o + block - 1 -> D (points, count, block)
void transform_gradients_of(const Shape& s, const Group& group, const float* grad, int64_t o,
                            float* d) {
    const int64_t across = (s.x + 3) / 4, down = (s.y + 3) / 4;
    for (int64_t t = 0; t < group.count; ++t) {
        const int64_t tile = group.first + t;
        const int64_t top = tile / across % down * 4, left = tile % across * 4;
        const int64_t corner = ((tile / across / down * s.y + top) * s.x + left) * s.o + o;
        const int64_t rows = std::min<int64_t>(4, s.y - top);
        const int64_t columns = std::min<int64_t>(4, s.x - left);
        for (int64_t half = 0; half < block; half += lanes) {
            Lanes along_columns[6][4];
            for (int q = 0; q < 4; ++q) {
                Lanes pixels[4] = {}, along[6];
                for (int p = 0; p < rows && q < columns; ++p) {
                    pixels[p] = load(grad + corner + (p * s.x + q) * s.o + half);
                }
                transform_gradients(pixels, along);
                for (int p = 0; p < 6; ++p) along_columns[p][q] = along[p];
            }
            for (int p = 0; p < 6; ++p) {
                Lanes values[6];
                transform_gradients(along_columns[p], values);
                for (int q = 0; q < 6; ++q) {
                    store(d + ((p * 6 + q) * group.count + t) * block + half, values[q]);
                }
            }
        }
    }
}

// Adds the transpose of (count, lanes) of V times (count, block) of D to (lanes, block) of U
void add_products(int64_t count, const float* v, const float* d, float* u) {
    constexpr int rows = 8;  // as many sums as the processor needs at once: 8 x 2
    for (int first = 0; first < lanes; first += rows) {
        Lanes sums[rows][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            sums[r][0] = load(u + (first + r) * block);
            sums[r][1] = load(u + (first + r) * block + lanes);
        }
        for (int64_t t = 0; t < count; ++t) {
            const Lanes left = load(d + t * block), right = load(d + t * block + lanes);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                sums[r][0] += v[t * lanes + first + r] * left;
                sums[r][1] += v[t * lanes + first + r] * right;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            store(u + (first + r) * block, sums[r][0]);
            store(u + (first + r) * block + lanes, sums[r][1]);
        }
    }
}

// The gradients of U (parts, o / block, points, c, block), summed -> of the weight (o, 3, 3, c)
void transform_all_values(const Shape& s, int64_t parts, const float* u, float* weight) {
    const int64_t vectors = s.o / lanes, size = points * s.c * s.o;
    parallel_for(vectors * (s.c / lanes), [&](int64_t job) {
        const int64_t o = job % vectors * lanes, c = job / vectors * lanes;
        alignas(64) float turned[lanes][9][lanes];  // input channels, taps, output channels
        for (int j = 0; j < lanes; ++j) {
            const float* from = u + (o / block * points * s.c + c + j) * block + o % block;
            Lanes columns[3][6];
            for (int q = 0; q < 6; ++q) {
                Lanes values[6] = {}, along[3];
                for (int64_t part = 0; part < parts; ++part) {
                    for (int p = 0; p < 6; ++p) {
                        values[p] += load(from + part * size + (p * 6 + q) * s.c * block);
                    }
                }
                transform_values(values, along);
                for (int p = 0; p < 3; ++p) columns[p][q] = along[p];
            }
            for (int p = 0; p < 3; ++p) {
                Lanes taps[3];
                transform_values(columns[p], taps);
                for (int q = 0; q < 3; ++q) store(turned[j][p * 3 + q], taps[q]);
            }
        }
        for (int i = 0; i < lanes; ++i) {
            for (int tap = 0; tap < 9; ++tap) {
                float* to = weight + ((o + i) * 9 + tap) * s.c + c;
                for (int j = 0; j < lanes; ++j) to[j] = turned[j][tap][i];
            }
        }
    });
}

Buffer& weights = *new Buffer;  // never destroyed: a thread may be at work when the process ends

}  // namespace

void convolve(const Shape& s, const float* x, const float* weight, const float* bias,
              const float* plus, float* out) {
    float* u = weights.floats(points * s.c * s.o);
    transform_all_weights(s, weight, u);
    convolve_transformed(s, x, u, bias, plus, out);
}

void convolve_transposed(const Shape& s, const float* x, const float* weight, float* out) {
    float* u = weights.floats(points * s.c * s.o);
    transform_transposed_weights(s, weight, u);
    convolve_transformed(s, x, u, nullptr, nullptr, out);
}

void grad_weight(const Shape& s, const float* x, const float* grad, float* out) {
    // a part a thread, each with sums of its own: the same sums whichever thread takes it
    const int64_t tiles = s.tiles(), size = points * s.c * s.o;
    const int64_t groups = (tiles + gradient_group_size - 1) / gradient_group_size;
    const int64_t parts = std::min<int64_t>(thread_count(), groups);
    float* sums = weights.floats(parts * size);
    parallel_for(parts, [&](int64_t part) {
        thread_local Buffer pixels, gradients;
        float* u = sums + part * size;
        std::fill_n(u, size, 0.0f);
        for (int64_t i = groups * part / parts; i < groups * (part + 1) / parts; ++i) {
            const Group group(tiles * i / groups, tiles * (i + 1) / groups, gradient_group_size);
            float* v = pixels.floats(points * group.count * s.c);
            float* d = gradients.floats(points * group.count * block);
            transform_tiles(s, group, x, v);
            for (int64_t o = 0; o < s.o; o += block) {
                transform_gradients_of(s, group, grad, o, d);
                for (int p = 0; p < points; ++p) {
                    for (int64_t c = 0; c < s.c; c += lanes) {
                        add_products(group.count, v + (p * s.c + c) * group.count,
                                     d + p * group.count * block,
                                     u + ((o / block * points + p) * s.c + c) * block);
                    }
                }
            }
        }
    });
    transform_all_values(s, parts, sums, out);
}

}  // namespace winograd
