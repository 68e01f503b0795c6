// layer_norm(x) * (1 + scale) + shift, the adaptive layer norm of DiT (arXiv:2212.09748), in one
// pass: x is read once and y written once, in the type of the product that follows. The composed
// form is four kernels, which move eight arrays.
//
// Sums are taken in float32, the variance from the centred row. Never compiled by CANN's compiler
// and never run on an NPU; the tests run it on a model of the instructions.
#pragma once

#include "vector.h"

namespace var_transformer {

// x: (images * length, width) of From. y: the same of To. scale, shift: (images, width) of To.
template <typename From, typename To>
class ModulatedNorm {
 public:
  __aicore__ inline void Init(GM_ADDR x, GM_ADDR scale, GM_ADDR shift, GM_ADDR y,
                              const ModulatedNormTiling& tiling, AscendC::TPipe* pipe) {
    tiling_ = tiling;
    share_ = ShareOf(tiling.images * tiling.length, tiling.cores, AscendC::GetBlockIdx());
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ From*>(x));
    scale_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(scale));
    shift_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(shift));
    y_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(y));

    const ModulatedNormBuffers bytes =
        BuffersOf(tiling.tile_rows, tiling.width, sizeof(From), sizeof(To));
    pipe->InitBuffer(read_, 2, bytes.read);
    pipe->InitBuffer(written_, 2, bytes.written);
    pipe->InitBuffer(staged_, 1, bytes.staged);
    pipe->InitBuffer(wide_buffer_, bytes.wide);
    pipe->InitBuffer(squares_buffer_, bytes.squares);
    pipe->InitBuffer(gain_buffer_, bytes.modulation);
    pipe->InitBuffer(bias_buffer_, bytes.modulation);
    pipe->InitBuffer(partials_buffer_, bytes.partials);
    pipe->InitBuffer(column_buffer_, bytes.column);
    pipe->InitBuffer(sums_buffer_, bytes.sums);
    pipe->InitBuffer(ones_buffer_, bytes.sums);
    wide_ = wide_buffer_.template Get<float>();
    squares_ = squares_buffer_.template Get<float>();
    gain_ = gain_buffer_.template Get<float>();
    bias_ = bias_buffer_.template Get<float>();
    partials_ = partials_buffer_.template Get<float>();
    column_ = column_buffer_.template Get<float>();
    sums_ = sums_buffer_.template Get<float>();
    ones_ = ones_buffer_.template Get<float>();

    AscendC::Duplicate(sums_, 1.0f, bytes.sums / kFloat);
    AscendC::Duplicate(ones_, 1.0f, bytes.sums / kFloat);
    Barrier();
  }

  __aicore__ inline void Process() {
    uint32_t modulated = tiling_.images;  // no image yet
    uint32_t rows = 0;
    for (uint32_t row = share_.begin; row < share_.end; row += rows) {
      const uint32_t image = row / tiling_.length;
      if (image != modulated) LoadModulation(image);
      modulated = image;
      rows = TileRows(row, share_.end, tiling_.length, tiling_.tile_rows);
      CopyIn(row, rows);
      Compute(rows);
      CopyOut(row, rows);
    }
  }

 private:
  __aicore__ inline void LoadModulation(uint32_t image) {
    const uint32_t width = tiling_.width;
    const uint64_t offset = static_cast<uint64_t>(image) * width;
    LocalTensor<To> staged = staged_.template AllocTensor<To>();
    AscendC::DataCopy(staged, scale_[offset], width);
    AscendC::DataCopy(staged[width], shift_[offset], width);
    staged_.EnQue(staged);
    staged = staged_.template DeQue<To>();
    Barrier();
    Widen(gain_, staged, width);
    Widen(bias_, staged[width], width);
    Barrier();
    AscendC::Adds(gain_, gain_, 1.0f, width);
    staged_.FreeTensor(staged);
  }

  __aicore__ inline void CopyIn(uint32_t row, uint32_t rows) {
    LocalTensor<From> x = read_.template AllocTensor<From>();
    AscendC::DataCopy(x, x_[static_cast<uint64_t>(row) * tiling_.width], rows * tiling_.width);
    read_.EnQue(x);
  }

  __aicore__ inline void Compute(uint32_t rows) {
    const uint32_t width = tiling_.width, all = rows * width;
    LocalTensor<From> x = read_.template DeQue<From>();
    Barrier();
    Widen(wide_, x, all);
    read_.FreeTensor(x);
    Barrier();

    SumRows(wide_, rows);
    AscendC::Muls(sums_, sums_, -1.0f / width, rows);
    Barrier();
    Spread(column_, sums_, rows);
    Barrier();
    for (uint32_t r = 0; r < rows; ++r) {
      AscendC::Add(wide_[r * width], wide_[r * width], column_[r * 8], kLanes, width / kLanes,
                   {1, 1, 0, 8, 8, 0});
    }
    Barrier();

    AscendC::Mul(squares_, wide_, wide_, all);
    Barrier();
    SumRows(squares_, rows);
    AscendC::Muls(sums_, sums_, 1.0f / width, rows);
    Barrier();
    AscendC::Adds(sums_, sums_, tiling_.epsilon, rows);
    Barrier();
    AscendC::Sqrt(sums_, sums_, rows);
    Barrier();
    AscendC::Div(sums_, ones_, sums_, rows);
    Barrier();
    Spread(column_, sums_, rows);
    Barrier();
    for (uint32_t r = 0; r < rows; ++r) {
      AscendC::Mul(wide_[r * width], wide_[r * width], column_[r * 8], kLanes, width / kLanes,
                   {1, 1, 0, 8, 8, 0});
    }
    Barrier();

    for (uint32_t r = 0; r < rows; ++r) {
      AscendC::Mul(wide_[r * width], wide_[r * width], gain_, width);
    }
    Barrier();
    for (uint32_t r = 0; r < rows; ++r) {
      AscendC::Add(wide_[r * width], wide_[r * width], bias_, width);
    }
    Barrier();
    LocalTensor<To> y = written_.template AllocTensor<To>();
    Narrow(y, wide_, all);
    written_.EnQue(y);
  }

  // sums_ of `rows` rows: over 64 values at a time, then over those at most 64 sums.
  __aicore__ inline void SumRows(const LocalTensor<float>& from, uint32_t rows) {
    const uint32_t repeats = tiling_.width / kLanes;
    for (uint32_t r = 0; r < rows; ++r) {
      AscendC::WholeReduceSum<float>(partials_[r * kLanes], from[r * tiling_.width], kLanes,
                                     repeats, 1, 1, 8);
    }
    Barrier();
    AscendC::WholeReduceSum<float>(sums_, partials_, repeats, rows, 1, 1, 8);
    Barrier();
  }

  __aicore__ inline void CopyOut(uint32_t row, uint32_t rows) {
    LocalTensor<To> y = written_.template DeQue<To>();
    AscendC::DataCopy(y_[static_cast<uint64_t>(row) * tiling_.width], y, rows * tiling_.width);
    written_.FreeTensor(y);
  }

  ModulatedNormTiling tiling_;
  Share share_;
  GlobalTensor<From> x_;
  GlobalTensor<To> scale_, shift_, y_;
  AscendC::TQue<AscendC::TPosition::VECIN, 1> read_;
  AscendC::TQue<AscendC::TPosition::VECIN, 1> staged_;
  AscendC::TQue<AscendC::TPosition::VECOUT, 1> written_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> wide_buffer_, squares_buffer_, gain_buffer_,
      bias_buffer_, partials_buffer_, column_buffer_, sums_buffer_, ones_buffer_;
  LocalTensor<float> wide_, squares_, gain_, bias_, partials_, column_, sums_, ones_;
};

}  // namespace var_transformer
