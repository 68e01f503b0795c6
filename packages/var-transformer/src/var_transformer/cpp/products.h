// Products of matrices: small ones in registers, others by oneDNN.
#pragma once

#include <algorithm>

#include "common/vector.h"

// A matrix in memory: element (i, j) is data[i * row + j * column].
struct Matrix {
    const float* data;
    int64_t row, column;
};

// c (m x n, row by row) = a (m x depth) b (depth x n) + bias (n), by oneDNN; bias may be null. Row
// or column of a and b is 1. Any thread may call at any time. Throws if oneDNN refuses.
void matrix_product(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, const float* bias,
                    float* c);

inline int64_t whole_vectors(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

// The largest tile of results: 6 x 4 sums, 4 vectors of b and one of a take 29 of 32 registers, 6 x
// 2 sums, 2 vectors and one take 15 of 16.
constexpr int64_t tile_rows = 6, tile_vectors = registers == 32 ? 4 : 2;

// c (R x lanes N) = a (R x depth) b (depth x lanes N), added to c if `add`
template <int R, int N>
void tile(int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
          bool add) {
    Vector sums[R][N] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) right[j] = load(b + k * b_row + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const Vector left = a.data[i * a.row + k * a.column] - Vector{};  // in all lanes
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sums[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            float* to = c + i * c_row + j * lanes;
            store(to, add ? load(to) + sums[i][j] : sums[i][j]);
        }
    }
}

using Tile = void (*)(int64_t, Matrix, const float*, int64_t, float*, int64_t, bool);

template <int R>
constexpr Tile tiles_of[4] = {tile<R, 1>, tile<R, 2>, tile<R, 3>, tile<R, 4>};
constexpr const Tile* tiles[tile_rows] = {tiles_of<1>, tiles_of<2>, tiles_of<3>,
                                          tiles_of<4>, tiles_of<5>, tiles_of<6>};

// c (rows x columns) = a (rows x depth) b (depth x columns); columns up to the next multiple of
// `lanes` are read from b and written to c.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float* b,
                     int64_t b_row, float* c, int64_t c_row, bool add = false) {
    const int64_t vectors = (columns + lanes - 1) / lanes;
    for (int64_t j = 0; j < vectors; j += tile_vectors) {
        const int64_t wide = std::min(vectors - j, tile_vectors);
        for (int64_t i = 0; i < rows; i += tile_rows) {
            const int64_t high = std::min(rows - i, tile_rows);
            tiles[high - 1][wide - 1](depth, {a.data + i * a.row, a.row, a.column}, b + j * lanes,
                                      b_row, c + i * c_row + j * lanes, c_row, add);
        }
    }
}
