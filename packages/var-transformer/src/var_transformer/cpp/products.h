// Matrix products by oneDNN (https://uxlfoundation.github.io/oneDNN), on the threads of kernel.h.
#pragma once

#include <cstdint>

// Looks up what is needed in the shared library at `path`; false where that fails.
bool open_onednn(const char* path);

// A matrix in memory: element (i, j) is data[i * row + j * column], and row or column is 1.
struct Matrix {
    const float* data;
    int64_t row, column;
};

// c (m x n, row by row) = a (m x depth) b (depth x n) + bias (n); bias may be null. Any thread may
// call at any time. Throws where oneDNN refuses.
void matrix_product(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, const float* bias,
                    float* c);
