// Affine maps of the last axis, y = x weight^T + bias, and their gradients.
//
// oneDNN first copies the weight into a layout of its own, which does not pay for a few rows of x.
// For those, x is transposed instead: a vector holds one input of as many rows as it has lanes, and
// is multiplied by the weight as it lies in memory, each number of which is read once. Where rows
// would fill half a vector at most, vectors hold inputs of one row, and of one output's weights.

#include <algorithm>
#include <cstring>

#include "common/buffer.h"
#include "common/kernel.h"
#include "common/threads.h"
#include "layers.h"
#include "products.h"

namespace {

// Rows up to which this is faster than oneDNN, as measured with AVX-512 and with AVX2.
constexpr int64_t few = lanes == 16 ? 48 : 64;

constexpr int64_t half_vector = lanes / 2;

constexpr int64_t panel = 2 * lanes;  // rows of x that are transposed side by side
constexpr int64_t few_row = (few + panel - 1) / panel * panel;
// A part of the weight, 48 KiB, that is copied to lie together. Rows are not a power of two
// apart: they would share a few sets of the cache.
constexpr int64_t part_outputs = 48, part_depth = 256, part_row = part_depth + 16;
// Outputs of a tile of sums, by vectors of rows: 24 sums, 2 vectors of x and a weight take 27 of 32
// registers, half as many sums 15 of 16.
constexpr int64_t tile_outputs[] = {0, registers == 32 ? 24 : 12, registers == 32 ? 12 : 6};

// rows[i][j] becomes rows[j][i]
void transpose(Vector (&rows)[lanes]) {
    using Positions = int32_t __attribute__((vector_size(4 * lanes)));
    Positions low, high;  // of two vectors interleaved, the first half and the second
    for (int i = 0; i < lanes; ++i) {
        low[i] = i / 2 + i % 2 * lanes;
        high[i] = low[i] + lanes / 2;
    }
#pragma GCC unroll 4
    for (int done = 1; done < lanes; done *= 2) {
        Vector next[lanes];
#pragma GCC unroll 8
        for (int i = 0; i < lanes / 2; ++i) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + lanes / 2], low);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + lanes / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) rows[i] = next[i];
    }
}

// `count` floats, then zeros
Vector load_part(const float* from, int64_t count) {
    if (count >= lanes) return load(from);
    Vector part = {};
    if (count > 0) std::memcpy(&part, from, 4 * count);
    return part;
}

void store_part(float* to, Vector value, int64_t count) {
    if (count >= lanes) {
        store(to, value);
    } else {
        std::memcpy(to, &value, 4 * count);
    }
}

// Tiles of rows (R) by outputs: 16 sums, 4 vectors of the weight and one of x take 21 of 32
// registers, half as many sums 13 of 16.
constexpr int64_t dot_outputs = 4, dot_rows = registers == 32 ? 4 : 2;

// sums[r][n + i] = elements of x[r] times those of the weight's row i, as many sums as lanes
template <int64_t R>
void dot_tile(int64_t depth, const float* const (&x)[R], const float* const (&weight)[dot_outputs],
              Vector (&sums)[dot_rows][lanes], int64_t n) {
    constexpr int64_t line = 16;  // floats
    Vector tile[R][dot_outputs] = {};
    const auto add = [&](const auto& load_at) {
        Vector right[dot_outputs];
#pragma GCC unroll 4
        for (int i = 0; i < dot_outputs; ++i) right[i] = load_at(weight[i]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Vector left = load_at(x[r]);
#pragma GCC unroll 4
            for (int i = 0; i < dot_outputs; ++i) tile[r][i] += left * right[i];
        }
    };
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
        if (k % line == 0)
#pragma GCC unroll 4
            for (int i = 0; i < dot_outputs; ++i)  // of the outputs after these
                __builtin_prefetch(weight[i] + dot_outputs * depth + k);
        add([k](const float* from) { return load(from + k); });
    }
    if (k < depth) add([=](const float* from) { return load_part(from + k, depth - k); });
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < dot_outputs; ++i) sums[r][n + i] = tile[r][i];
}

// y (rows x outputs) = x (rows x depth) weight^T + bias
void multiply_dots(int64_t rows, int64_t outputs, int64_t depth, const float* x,
                   const float* weight, const float* bias, float* y) {
    // a weight that is read from memory takes longer than its products
    const bool worth = worth_threads(8 * outputs * depth);
    parallel_for_if(worth, (outputs + lanes - 1) / lanes, [&](int64_t job) {
        const int64_t first = job * lanes, high = std::min<int64_t>(lanes, outputs - first);
        for (int64_t i = 0; i < rows; i += dot_rows) {
            const int64_t last = std::min(dot_rows, rows - i) - 1;
            Vector sums[dot_rows][lanes];
            for (int64_t n = 0; n < lanes; n += dot_outputs) {
                const float *at_x[dot_rows], *at_weight[dot_outputs];
                // what is too much repeats the last row or output, and nobody reads its sums
                for (int64_t r = 0; r < dot_rows; ++r)
                    at_x[r] = x + (i + std::min(r, last)) * depth;
                for (int64_t j = 0; j < dot_outputs; ++j)
                    at_weight[j] = weight + (first + std::min(n + j, high - 1)) * depth;
                if (last < 2) {
                    dot_tile<2>(depth, {at_x[0], at_x[1]}, at_weight, sums, n);
                } else {
                    dot_tile<dot_rows>(depth, at_x, at_weight, sums, n);
                }
            }
            for (int64_t r = 0; r <= last; ++r) {
                transpose(sums[r]);
                Vector total = load_part(bias + first, high);
                for (int j = 0; j < lanes; ++j) total += sums[r][j];
                store_part(y + (i + r) * outputs + first, total, high);
            }
        }
    });
}

// x (rows x depth), transposed: panels of (depth x panel), the depth in whole vectors
float* transposed(int64_t rows, int64_t depth, const float* x, bool worth) {
    thread_local Buffer buffer;
    const int64_t padded = whole_vectors(depth);
    float* const panels = buffer.floats(few_row * padded);
    parallel_for_if(worth, (depth + part_depth - 1) / part_depth, [&](int64_t job) {
        const int64_t begin = job * part_depth, end = std::min(depth, begin + part_depth);
        for (int64_t i = 0; i < rows; i += lanes) {
            float* to = panels + i / panel * panel * padded + i % panel;
            for (int64_t k = begin; k < end; k += lanes) {
                Vector block[lanes];
                for (int64_t r = 0; r < lanes; ++r)
                    block[r] =
                        i + r < rows ? load_part(x + (i + r) * depth + k, depth - k) : Vector{};
                transpose(block);
                for (int64_t r = 0; r < lanes; ++r) store(to + (k + r) * panel, block[r]);
            }
        }
    });
    return panels;
}

// sums (tile_outputs[V] x V lanes) = weight (tile_outputs[V] x depth) x (depth x V lanes), added to
// sums if `add`. Meanwhile fetches as many rows of `next`, whose rows are next_row apart.
template <int V>
void sum_tile(int64_t depth, const float* weight, const float* x, float* to, bool add,
              const float* next, int64_t next_row) {
    constexpr int64_t line = 16;  // floats
    constexpr int64_t outputs = tile_outputs[V];
    Vector sums[outputs][V];
#pragma GCC unroll 24
    for (int i = 0; i < outputs; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j)
            sums[i][j] = add ? load(to + i * few_row + j * lanes) : Vector{};
    }
    for (int64_t begin = 0; begin < depth; begin += line) {
        if (next)
#pragma GCC unroll 24
            for (int i = 0; i < outputs; ++i) __builtin_prefetch(next + i * next_row + begin, 0, 2);
        const int64_t end = std::min(depth, begin + line);
        for (int64_t k = begin; k < end; ++k) {
            Vector right[V];
#pragma GCC unroll 2
            for (int j = 0; j < V; ++j) right[j] = load(x + k * panel + j * lanes);
#pragma GCC unroll 24
            for (int i = 0; i < outputs; ++i) {
                const Vector left = weight[i * part_row + k] - Vector{};  // in all lanes
#pragma GCC unroll 2
                for (int j = 0; j < V; ++j) sums[i][j] += left * right[j];
            }
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < outputs; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) store(to + i * few_row + j * lanes, sums[i][j]);
    }
}

// y (rows x outputs) = x (rows x depth) weight^T + bias
void multiply_few(int64_t rows, int64_t outputs, int64_t depth, const float* x, const float* weight,
                  const float* bias, float* y) {
    const int64_t x_depth = whole_vectors(depth), ahead = thread_count() * part_outputs;
    const bool worth = worth_threads(rows * outputs * depth);
    const float* const panels = transposed(rows, depth, x, worth);
    parallel_for_if(worth, (outputs + part_outputs - 1) / part_outputs, [&](int64_t job) {
        const int64_t first = job * part_outputs, high = std::min(part_outputs, outputs - first);
        float part[part_outputs * part_row], sums[part_outputs * few_row];
        int64_t k = 0;
        do {
            const int64_t deep = std::min(part_depth, depth - k), padded = whole_vectors(deep);
            for (int64_t n = 0; n < part_outputs; ++n) {
                const float* from = weight + (first + n) * depth + k;
                for (int64_t e = 0; e < padded; e += lanes)
                    store(part + n * part_row + e, load_part(from + e, n < high ? deep - e : 0));
            }
            // what this thread copies next, as far as one can say
            const float* next = weight + (k + part_depth < depth ? first * depth + k + part_depth
                                                                 : (first + ahead) * depth);
            for (int64_t i = 0; i < rows; i += panel) {
                const int64_t vectors = rows - i > lanes ? 2 : 1;
                const float* right = panels + i * x_depth + k * panel;
                for (int64_t n = 0; n < high; n += tile_outputs[vectors]) {
                    (vectors == 2 ? sum_tile<2> : sum_tile<1>)(padded, part + n * part_row, right,
                                                               sums + n * few_row + i, k > 0,
                                                               i == 0 ? next + n * depth : nullptr,
                                                               depth);
                }
            }
            k += part_depth;
        } while (k < depth);
        for (int64_t i = 0; i < rows; i += lanes) {
            for (int64_t n = 0; n < high; n += lanes) {
                Vector block[lanes];
                for (int64_t j = 0; j < lanes; ++j) block[j] = load(sums + (n + j) * few_row + i);
                transpose(block);
                const Vector add = load_part(bias + first + n, high - n);
                for (int64_t r = 0; r < lanes && i + r < rows; ++r) {
                    store_part(y + (i + r) * outputs + first + n, block[r] + add, high - n);
                }
            }
        }
    });
}

// The shapes of x (..., K) and y (..., N), and the number of their rows
struct Maps {
    Arrays::Shape x, y;
    int64_t rows = 1, depth, outputs;

    // Of arrays x and weight (N, K)
    Maps(const Arrays& arrays, int at_x, int at_weight) : x(arrays.shape(at_x)), y(x) {
        const auto weight = arrays.sizes<2>(at_weight);
        outputs = weight[0], depth = weight[1];
        expect(!x.empty() && x.back() == depth);
        y.back() = outputs;
        for (size_t i = 0; i + 1 < x.size(); ++i) rows *= x[i];
    }
};

}  // namespace

void affine(int64_t rows, int64_t outputs, int64_t depth, const float* x, const float* weight,
            const float* bias, float* y) {
    if (rows > few) {
        matrix_product(rows, outputs, depth, {x, depth, 1}, {weight, 1, depth}, bias, y);
    } else if (rows <= half_vector) {
        multiply_dots(rows, outputs, depth, x, weight, bias, y);
    } else {
        multiply_few(rows, outputs, depth, x, weight, bias, y);
    }
}

RESULT_SHAPE(linear) {
    auto y = arrays.shape(0);
    y.back() = arrays.shape(1)[0];
    return y;
}

// x (..., K), weight (N, K), bias (N) -> (..., N)
KERNEL(linear) {
    const Maps maps(arrays, 0, 1);
    const int64_t rows = maps.rows, outputs = maps.outputs, depth = maps.depth;
    const float *x = arrays.get(0, maps.x), *weight = arrays.get(1, {outputs, depth});
    const float* bias = arrays.get(2, {outputs});
    affine(rows, outputs, depth, x, weight, bias, arrays.get(3, maps.y));
}

// gradient of the result (..., N), x (..., K), weight (N, K) -> gradients of x, weight and bias
KERNEL(linear_grad) {
    const Maps maps(arrays, 1, 2);
    const int64_t rows = maps.rows, outputs = maps.outputs, depth = maps.depth;
    const float *grad = arrays.get(0, maps.y), *x = arrays.get(1, maps.x);
    const float* weight = arrays.get(2, {outputs, depth});
    float *grad_x = arrays.get(3, maps.x), *grad_weight = arrays.get(4, {outputs, depth});
    float* grad_bias = arrays.get(5, {outputs});
    matrix_product(rows, depth, outputs, {grad, outputs, 1}, {weight, depth, 1}, nullptr, grad_x);
    matrix_product(outputs, depth, rows, {grad, 1, outputs}, {x, depth, 1}, nullptr, grad_weight);
    constexpr int64_t part = 128;
    parallel_for_if(worth_threads(rows * outputs), (outputs + part - 1) / part, [&](int64_t job) {
        const int64_t first = job * part, wide = std::min(part, outputs - first);
        float* sum = grad_bias + first;
        std::fill_n(sum, wide, 0.0f);
        for (int64_t i = 0; i < rows; ++i) {
            const float* from = grad + i * outputs + first;
#pragma omp simd
            for (int64_t j = 0; j < wide; ++j) sum[j] += from[j];
        }
    });
}
