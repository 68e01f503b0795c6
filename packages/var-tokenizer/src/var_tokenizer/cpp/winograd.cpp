// Winograd's minimal filtering F(4x4, 3x3) (arXiv:1509.09308): 36 products give 16 pixels.
//
// With d a tile of 6x6 pixels, g a kernel of 3x3 weights and y a tile of 4x4 results,
//
//     V = B^T d B,  U = G g G^T,  y = A^T M A,  M = U V, point by point, summed over the channels:
//
// for all tiles together, M is 36 matrix products. The gradient of y goes to D = A dy A^T, that of
// g is G^T (D V) G. With n = 1/sqrt(2) and f = sqrt(2),
//
//           1   0  -5/2   0    1  0             1      0     0
//           0  -f   -2    n    1  0           -2/3  -2n/3  -1/3           1   1    1    1    1   0
//     B^T = 0   f   -2   -n    1  0      G =  -2/3   2n/3  -1/3    A^T =  0   n   -n    f   -f   0
//           0  -n  -1/2   f    1  0            1/6   f/6    1/3           0  1/2  1/2   2    2   0
//           0   n  -1/2  -f    1  0            1/6  -f/6    1/3           0  n/2 -n/2  2f  -2f   1
//           0   1    0  -5/2   0  1             0      0     1
//
// The points are 0, +-n, +-f and infinity: errors are 5 times those of a direct convolution, half
// of those at 0, +-1, +-2.

#include "winograd.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/buffer.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "common/vector.h"

namespace winograd {

namespace {

constexpr int points = 36;
constexpr int block = 2 * lanes;  // output channels of one product
// Tiles of one product, at most: their 2 sums each, 2 vectors of U and one of V fill the registers.
constexpr int max_rows = (registers - 3) / 2;
constexpr int group_size = 28;           // tiles whose V and M a thread holds at once, at most,
constexpr int gradient_group_size = 56;  // and whose V and D
// Floats after each point's matrix: without them the same element of all points would have the same
// low 12 bits of its address, and 36 lines would compete for one set of the cache.
constexpr int64_t gap = 16;
constexpr float near = 0.70710678f, far = 1.41421356f;  // n and f

inline void times_BT(const Vector (&d)[6], Vector (&v)[6]) {
    const Vector even_near = d[4] - 2.0f * d[2], odd_near = near * d[3] - far * d[1];
    const Vector even_far = d[4] - 0.5f * d[2], odd_far = far * d[3] - near * d[1];
    v[0] = d[0] - 2.5f * d[2] + d[4];
    v[1] = even_near + odd_near;
    v[2] = even_near - odd_near;
    v[3] = even_far + odd_far;
    v[4] = even_far - odd_far;
    v[5] = d[1] - 2.5f * d[3] + d[5];
}

inline void times_G(const Vector (&g)[3], Vector (&u)[6]) {
    const Vector even_near = (g[0] + 0.5f * g[2]) * (-2.0f / 3), odd_near = g[1] * (near * -2 / 3);
    const Vector even_far = (g[0] + 2.0f * g[2]) * (1.0f / 6), odd_far = g[1] * (far / 6);
    u[0] = g[0];
    u[1] = even_near + odd_near;
    u[2] = even_near - odd_near;
    u[3] = even_far + odd_far;
    u[4] = even_far - odd_far;
    u[5] = g[2];
}

inline void times_AT(const Vector (&m)[6], Vector (&y)[4]) {
    const Vector sum_near = m[1] + m[2], difference_near = m[1] - m[2];
    const Vector sum_far = m[3] + m[4], difference_far = m[3] - m[4];
    y[0] = m[0] + sum_near + sum_far;
    y[1] = near * difference_near + far * difference_far;
    y[2] = 0.5f * sum_near + 2.0f * sum_far;
    y[3] = (near / 2) * difference_near + (far * 2) * difference_far + m[5];
}

inline void times_A(const Vector (&y)[4], Vector (&m)[6]) {
    const Vector even_near = y[0] + 0.5f * y[2], odd_near = near * (y[1] + 0.5f * y[3]);
    const Vector even_far = y[0] + 2.0f * y[2], odd_far = far * (y[1] + 2.0f * y[3]);
    m[0] = y[0];
    m[1] = even_near + odd_near;
    m[2] = even_near - odd_near;
    m[3] = even_far + odd_far;
    m[4] = even_far - odd_far;
    m[5] = y[3];
}

inline void times_GT(const Vector (&u)[6], Vector (&g)[3]) {
    const Vector sum_near = u[1] + u[2], sum_far = u[3] + u[4];
    g[0] = u[0] - (2.0f / 3) * sum_near + (1.0f / 6) * sum_far;
    g[1] = (near * -2 / 3) * (u[1] - u[2]) + (far / 6) * (u[3] - u[4]);
    g[2] = u[5] + (1.0f / 3) * (sum_far - sum_near);
}

// T X T^T (m x m): put(p, q, element) for each, where get(p, q) is an element of X (n x n), and
// times(x, y) sets y = T x.
template <int n, int m, typename Times, typename Get, typename Put>
inline void on_both_sides(Times times, Get get, Put put) {
    Vector half[m][n];
    for (int q = 0; q < n; ++q) {
        Vector x[n], y[m];
        for (int p = 0; p < n; ++p) x[p] = get(p, q);
        times(x, y);
        for (int p = 0; p < m; ++p) half[p][q] = y[p];
    }
    for (int p = 0; p < m; ++p) {
        Vector y[m];
        times(half[p], y);
        for (int q = 0; q < m; ++q) put(p, q, y[q]);
    }
}

// The size of U (points, c, block) for one block of output channels
int64_t size_of_u(int64_t c) { return points * (c * block + gap); }

// G g G^T of kernels of 3x3 vectors, get(tap), at the points of U (points, c, block)
template <typename Get>
void transform_kernel(Get get, int64_t c, float* u) {
    on_both_sides<3, 6>(
        times_G, [&](int p, int q) { return get(p * 3 + q); },
        [&](int p, int q, Vector value) { store(u + (p * 6 + q) * (c * block + gap), value); });
}

// weight (o, 3, 3, c) -> U (o / block, points, c, block)
void transform_weight(const Shape& s, const float* weight, float* u) {
    // a job writes whole blocks: two threads at one line of the cache would wait for each other
    parallel_for(s.c / lanes, [&](int64_t job) {
        const int64_t c = job * lanes;
        for (int64_t o = 0; o < s.o; o += lanes) {
            alignas(64) float turned[lanes][9][lanes];  // input channels, taps, output channels
            for (int i = 0; i < lanes; ++i) {
                for (int tap = 0; tap < 9; ++tap) {
                    const float* from = weight + ((o + i) * 9 + tap) * s.c + c;
                    for (int j = 0; j < lanes; ++j) turned[j][tap][i] = from[j];
                }
            }
            for (int j = 0; j < lanes; ++j) {
                transform_kernel([&](int tap) { return load(turned[j][tap]); }, s.c,
                                 u + o / block * size_of_u(s.c) + (c + j) * block + o % block);
            }
        }
    });
}

// The same for the transposed convolution: its weight is (c, 3, 3, o), turned by 180 degrees.
void transform_transposed_weight(const Shape& s, const float* weight, float* u) {
    parallel_for(s.c, [&](int64_t c) {
        for (int64_t o = 0; o < s.o; o += lanes) {
            transform_kernel([&](int tap) { return load(weight + (c * 9 + 8 - tap) * s.o + o); },
                             s.c, u + o / block * size_of_u(s.c) + c * block + o % block);
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

// A tile of results: its image, its first row and column, and which of its 4x4 lie in the map
struct Tile {
    int64_t image, top, left, rows, columns;
    Tile(const Shape& s, int64_t i) {
        const int64_t across = (s.x + 3) / 4, down = (s.y + 3) / 4;
        image = i / across / down, top = i / across % down * 4, left = i % across * 4;
        rows = s.y - top, columns = s.x - left;
    }
    bool has(int row, int column) const { return row < rows && column < columns; }
};

// B^T d B of the group's tiles of pixels -> V (points, blocks, c / lanes, rows, lanes)
void transform_pixels(const Shape& s, const Group& group, const float* x, float* v) {
    const int64_t halve = s.upsampled ? 1 : 0, stored_x = s.x >> halve, stored_y = s.y >> halve;
    for (int64_t i = 0; i < group.blocks; ++i) {
        const int64_t rows = group.rows(i);
        for (int64_t r = 0; r < rows; ++r) {
            const Tile tile(s, group.first + group.begin(i) + r);
            const float* image = x + tile.image * stored_y * stored_x * s.c;
            const float* at[6][6];
            for (int64_t p = 0; p < 6; ++p) {
                for (int64_t q = 0; q < 6; ++q) {
                    const int64_t row = tile.top + p - 1, column = tile.left + q - 1;
                    const bool inside = row >= 0 && row < s.y && column >= 0 && column < s.x;
                    at[p][q] = inside
                                   ? image + ((row >> halve) * stored_x + (column >> halve)) * s.c
                                   : nullptr;
                }
            }
            float* to = v + group.begin(i) * s.c + r * lanes;
            const int64_t point = group.count * s.c + gap;
            for (int64_t c = 0; c < s.c; c += lanes) {
                on_both_sides<6, 6>(
                    times_BT,
                    [&](int p, int q) { return at[p][q] ? load(at[p][q] + c) : Vector{}; },
                    [&](int p, int q, Vector value) {
                        store(to + (p * 6 + q) * point + c * rows, value);
                    });
            }
        }
    }
}

// (rows, c) of V times (c, block) of U -> (rows, block) of M
template <int rows>
void multiply(int64_t c, const float* v, const float* u, float* m) {
    Vector sums[rows][2] = {};
    for (int64_t i = 0; i < c / lanes; ++i, v += rows * lanes, u += lanes * block) {
#pragma GCC unroll 4
        for (int j = 0; j < lanes; ++j) {
            const Vector left = load(u + j * block), right = load(u + j * block + lanes);
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

template <int... rows>
constexpr std::array<Multiply, max_rows> multiply_for(std::integer_sequence<int, rows...>) {
    return {multiply<rows + 1>...};
}
constexpr auto multiply_rows = multiply_for(std::make_integer_sequence<int, max_rows>());

// A^T M A of M (points, count, block) -> channels o .. o + block - 1 of the group's pixels
void transform_products(const Shape& s, const Group& group, const float* m, int64_t o,
                        const float* bias, const float* plus, float* out) {
    for (int64_t t = 0; t < group.count; ++t) {
        const Tile tile(s, group.first + t);
        const int64_t corner = ((tile.image * s.y + tile.top) * s.x + tile.left) * s.o + o;
        for (int64_t half = 0; half < block; half += lanes) {
            const Vector added = bias ? load(bias + o + half) : Vector{};
            Vector down_columns[4][6];
            for (int q = 0; q < 6; ++q) {
                Vector products[6], along[4];
                for (int p = 0; p < 6; ++p) {
                    products[p] = load(m + ((p * 6 + q) * group.count + t) * block + half);
                }
                times_AT(products, along);
                for (int p = 0; p < 4; ++p) down_columns[p][q] = along[p];
            }
            for (int p = 0; p < 4 && p < tile.rows; ++p) {
                Vector pixels[4];
                times_AT(down_columns[p], pixels);
                for (int q = 0; q < 4 && q < tile.columns; ++q) {
                    const int64_t to = corner + (p * s.x + q) * s.o + half;
                    const Vector value = pixels[q] + added;
                    store(out + to, plus ? value + load(plus + to) : value);
                }
            }
        }
    }
}

// The convolution whose weight is U
void convolve_transformed(const Shape& s, const float* x, const float* u, const float* bias,
                          const float* plus, float* out) {
    const int64_t tiles = s.tiles(), at_once = group_size * thread_count();
    const int64_t rounds = (tiles + at_once - 1) / at_once;  // all threads end at the same time
    const int64_t groups = std::min(tiles, rounds * thread_count());
    parallel_for(groups, [&](int64_t job) {
        thread_local Buffer pixels, products;
        const Group group(tiles * job / groups, tiles * (job + 1) / groups, max_rows);
        const int64_t point = group.count * s.c + gap;
        float* v = pixels.floats(points * point);
        float* m = products.floats(points * group.count * block);
        transform_pixels(s, group, x, v);
        for (int64_t o = 0; o < s.o; o += block) {
            for (int p = 0; p < points; ++p) {
                for (int64_t i = 0; i < group.blocks; ++i) {
                    const int64_t begin = group.begin(i);
                    multiply_rows[group.rows(i) - 1](
                        s.c, v + p * point + begin * s.c,
                        u + o / block * size_of_u(s.c) + p * (s.c * block + gap),
                        m + (p * group.count + begin) * block);
                }
            }
            transform_products(s, group, m, o, bias, plus, out);
        }
    });
}

// A dy A^T of the gradient of the group's pixels, channels o .. o + block - 1 -> D (points, count,
// block)
void transform_gradient(const Shape& s, const Group& group, const float* grad, int64_t o,
                        float* d) {
    for (int64_t t = 0; t < group.count; ++t) {
        const Tile tile(s, group.first + t);
        const int64_t corner = ((tile.image * s.y + tile.top) * s.x + tile.left) * s.o + o;
        for (int64_t half = 0; half < block; half += lanes) {
            const float* from = grad + corner + half;
            on_both_sides<4, 6>(
                times_A,
                [&](int p, int q) {
                    return tile.has(p, q) ? load(from + (p * s.x + q) * s.o) : Vector{};
                },
                [&](int p, int q, Vector value) {
                    store(d + ((p * 6 + q) * group.count + t) * block + half, value);
                });
        }
    }
}

// Adds the transpose of (count, lanes) of V times (count, block) of D to (lanes, block) of U
void add_products(int64_t count, const float* v, const float* d, float* u) {
    // Two units that each begin a sum in every cycle and end it four cycles later need 8 sums at
    // least. 8 x 2 sums, 2 vectors of D and one of V take 19 of 32 registers, 4 x 2 take 11 of 16.
    constexpr int rows = std::min(lanes, registers / 4);
    for (int first = 0; first < lanes; first += rows) {
        Vector sums[rows][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            sums[r][0] = load(u + (first + r) * block);
            sums[r][1] = load(u + (first + r) * block + lanes);
        }
        for (int64_t t = 0; t < count; ++t) {
            const Vector left = load(d + t * block), right = load(d + t * block + lanes);
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

// G^T u G of the gradients u (parts, o / block, points, c, block), summed -> of the weight (o, 3,
// 3, c)
void transform_sums(const Shape& s, int64_t parts, const float* u, float* weight) {
    const int64_t vectors = s.o / lanes, size = s.o / block * size_of_u(s.c);
    parallel_for(vectors * (s.c / lanes), [&](int64_t job) {
        const int64_t o = job % vectors * lanes, c = job / vectors * lanes;
        alignas(64) float turned[lanes][9][lanes];  // input channels, taps, output channels
        for (int j = 0; j < lanes; ++j) {
            const float* from = u + o / block * size_of_u(s.c) + (c + j) * block + o % block;
            on_both_sides<6, 3>(
                times_GT,
                [&](int p, int q) {
                    Vector sum = {};
                    for (int64_t part = 0; part < parts; ++part) {
                        sum += load(from + part * size + (p * 6 + q) * (s.c * block + gap));
                    }
                    return sum;
                },
                [&](int p, int q, Vector tap) { store(turned[j][p * 3 + q], tap); });
        }
        for (int i = 0; i < lanes; ++i) {
            for (int tap = 0; tap < 9; ++tap) {
                float* to = weight + ((o + i) * 9 + tap) * s.c + c;
                for (int j = 0; j < lanes; ++j) to[j] = turned[j][tap][i];
            }
        }
    });
}

// Never destroyed: a thread may be at work when the process ends.
Buffer& transformed = *new Buffer;

}  // namespace

bool takes(int64_t c, int64_t o) { return c % lanes == 0 && o % block == 0; }

void convolve(const Shape& s, const float* x, const float* weight, const float* bias,
              const float* plus, float* out) {
    expect(takes(s.c, s.o));
    float* u = transformed.floats(s.o / block * size_of_u(s.c));
    transform_weight(s, weight, u);
    convolve_transformed(s, x, u, bias, plus, out);
}

void convolve_transposed(const Shape& s, const float* x, const float* weight, float* out) {
    expect(takes(s.c, s.o));
    float* u = transformed.floats(s.o / block * size_of_u(s.c));
    transform_transposed_weight(s, weight, u);
    convolve_transformed(s, x, u, nullptr, nullptr, out);
}

void grad_weight(const Shape& s, const float* x, const float* grad, float* out) {
    expect(takes(s.c, s.o));
    // a part for each thread, with sums of its own: they do not depend on who takes which part
    const int64_t tiles = s.tiles(), size = s.o / block * size_of_u(s.c);
    const int64_t groups = (tiles + gradient_group_size - 1) / gradient_group_size;
    const int64_t parts = std::min<int64_t>(thread_count(), groups);
    float* sums = transformed.floats(parts * size);
    parallel_for(parts, [&](int64_t part) {
        thread_local Buffer pixels, gradients;
        float* u = sums + part * size;
        std::fill_n(u, size, 0.0f);
        for (int64_t i = groups * part / parts; i < groups * (part + 1) / parts; ++i) {
            const Group group(tiles * i / groups, tiles * (i + 1) / groups, gradient_group_size);
            const int64_t point = group.count * s.c + gap;
            float* v = pixels.floats(points * point);
            float* d = gradients.floats(points * group.count * block);
            transform_pixels(s, group, x, v);
            for (int64_t o = 0; o < s.o; o += block) {
                transform_gradient(s, group, grad, o, d);
                for (int p = 0; p < points; ++p) {
                    for (int64_t c = 0; c < s.c; c += lanes) {
                        add_products(
                            group.count, v + p * point + c * group.count,
                            d + p * group.count * block,
                            u + o / block * size_of_u(s.c) + p * (s.c * block + gap) + c * block);
                    }
                }
            }
        }
    });
    transform_sums(s, parts, sums, out);
}

}  // namespace winograd
