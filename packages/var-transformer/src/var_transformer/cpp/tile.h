// Products of small matrices, whose results stay in registers.
#pragma once

#include <cstdint>

constexpr int64_t lanes = 16;
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));

// A matrix in memory: element (i, k) is data[i * row + k * column].
struct Left {
    const float* data;
    int64_t row, column;
};

// c (R x 16 N) = a (R x depth) b (depth x 16 N), added to what c holds where `add`
template <int R, int N>
void tile(int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    Vector sums[R][N] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j)
            right[j] = *reinterpret_cast<const Vector*>(b + k * b_row + j * lanes);
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
            Vector* to = reinterpret_cast<Vector*>(c + i * c_row + j * lanes);
            *to = add ? *to + sums[i][j] : sums[i][j];
        }
    }
}

using Tile = void (*)(int64_t, Left, const float*, int64_t, float*, int64_t, bool);

constexpr int64_t tile_rows = 6, tile_vectors = 4;

template <int R>
constexpr Tile tiles_of[tile_vectors] = {tile<R, 1>, tile<R, 2>, tile<R, 3>, tile<R, 4>};

inline Tile tile_for(int64_t rows, int64_t vectors) {
    static constexpr const Tile* table[tile_rows] = {tiles_of<1>, tiles_of<2>, tiles_of<3>,
                                                     tiles_of<4>, tiles_of<5>, tiles_of<6>};
    return table[rows - 1][vectors - 1];
}

// c (rows x columns) = a (rows x depth) b (depth x columns); columns up to the next multiple of 16
// are read from b and written to c.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b,
                     int64_t b_row, float* c, int64_t c_row, bool add = false) {
    const int64_t vectors = (columns + lanes - 1) / lanes;
    for (int64_t j = 0; j < vectors; j += tile_vectors) {
        const int64_t wide = vectors - j < tile_vectors ? vectors - j : tile_vectors;
        for (int64_t i = 0; i < rows; i += tile_rows) {
            const int64_t high = rows - i < tile_rows ? rows - i : tile_rows;
            tile_for(high, wide)(depth, {a.data + i * a.row, a.row, a.column}, b + j * lanes, b_row,
                                 c + i * c_row + j * lanes, c_row, add);
        }
    }
}
