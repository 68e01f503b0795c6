// Convolutions of any size and stride as products of matrices, for a oneDNN that only has these.
#pragma once

#include "direct.h"

namespace unfolded {

// As direct::convolve
void convolve(direct::Pass pass, const direct::Shape& shape, float* src, float* weights,
              float* bias, float* dst);

}  // namespace unfolded
