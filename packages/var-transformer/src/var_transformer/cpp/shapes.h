// The shapes of results, which MindSpore asks for by name: {kernel}InferShape.
#pragma once

#include <cstdint>
#include <vector>

#define RESULT_SHAPE(name) \
    extern "C" std::vector<int64_t> name##InferShape(int* ndims, int64_t** shapes, void*)

// The shape of input i.
inline std::vector<int64_t> shape_of(const int* ndims, int64_t** shapes, int i) {
    return std::vector<int64_t>(shapes[i], shapes[i] + ndims[i]);
}
