// Scales queries and keys to length 1 per head and queries by the learned scale (QK-L2), and writes
// keys and values where the attention reads them: one pass over the projection's result, instead of
// a split, ten element-wise operators and a write.
//
// Lengths are summed in float32. Never compiled by CANN's compiler and never run on an NPU; the
// tests run it on a model of the instructions.
#pragma once

#include "vector.h"

namespace var_transformer {

// qkv: (images * length, 3 * heads * head_width) of From, queries, keys and values side by side.
// scale: (heads,) float32. q_out: (images * length, heads * head_width) of To. k_out, v_out:
// (images, capacity, heads * head_width) of To, of which rows `first` and later are written.
template <typename From, typename To>
class UnitHeads {
 public:
  __aicore__ inline void Init(GM_ADDR qkv, GM_ADDR scale, GM_ADDR q_out, GM_ADDR k_out,
                              GM_ADDR v_out, const UnitHeadsTiling& tiling, AscendC::TPipe* pipe) {
    tiling_ = tiling;
    width_ = tiling.heads * tiling.head_width;
    share_ = ShareOf(tiling.images * tiling.length, tiling.cores, AscendC::GetBlockIdx());
    qkv_.SetGlobalBuffer(reinterpret_cast<__gm__ From*>(qkv));
    q_out_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(q_out));
    k_out_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(k_out));
    v_out_.SetGlobalBuffer(reinterpret_cast<__gm__ To*>(v_out));

    const UnitHeadsBuffers bytes =
        BuffersOf(tiling.tile_rows, tiling.heads, tiling.head_width, sizeof(From), sizeof(To));
    pipe->InitBuffer(read_, 2, bytes.read);
    pipe->InitBuffer(written_, 2, bytes.written);
    pipe->InitBuffer(wide_buffer_, bytes.wide);
    pipe->InitBuffer(squares_buffer_, bytes.squares);
    pipe->InitBuffer(column_buffer_, bytes.column);
    pipe->InitBuffer(sums_buffer_, bytes.sums);
    pipe->InitBuffer(ones_buffer_, bytes.sums);
    pipe->InitBuffer(scales_buffer_, bytes.sums);
    wide_ = wide_buffer_.template Get<float>();
    squares_ = squares_buffer_.template Get<float>();
    column_ = column_buffer_.template Get<float>();
    sums_ = sums_buffer_.template Get<float>();
    ones_ = ones_buffer_.template Get<float>();
    scales_ = scales_buffer_.template Get<float>();

    AscendC::Duplicate(sums_, 1.0f, bytes.sums / kFloat);
    AscendC::Duplicate(ones_, 1.0f, bytes.sums / kFloat);
    FillScales(scale);
    Barrier();
  }

  __aicore__ inline void Process() {
    uint32_t rows = 0;
    for (uint32_t row = share_.begin; row < share_.end; row += rows) {
      rows = TileRows(row, share_.end, tiling_.length, tiling_.tile_rows);
      const uint64_t from = static_cast<uint64_t>(row) * 3 * width_;
      const uint32_t image = row / tiling_.length, token = row % tiling_.length;
      const uint64_t to =
          (static_cast<uint64_t>(image) * tiling_.capacity + tiling_.first + token) * width_;
      Move(qkv_[from], q_out_[static_cast<uint64_t>(row) * width_], rows, &scales_);
      Move(qkv_[from + width_], k_out_[to], rows, &ones_);
      Move(qkv_[from + 2 * width_], v_out_[to], rows, nullptr);
    }
  }

 private:
  // The scales of all heads of a tile, one row after another, by scalar writes: once per core.
  __aicore__ inline void FillScales(GM_ADDR scale) {
    GlobalTensor<float> scale_h;
    scale_h.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(scale));
    for (uint32_t i = 0; i < tiling_.tile_rows * tiling_.heads; ++i) {
      scales_.SetValue(i, scale_h.GetValue(i % tiling_.heads));
    }
    const auto event = static_cast<event_t>(GetTPipePtr()->FetchEventID(AscendC::HardEvent::S_V));
    AscendC::SetFlag<AscendC::HardEvent::S_V>(event);
    AscendC::WaitFlag<AscendC::HardEvent::S_V>(event);
  }

  // A third of `rows` rows of qkv. lengths: what each head's length becomes; null leaves it.
  __aicore__ inline void Move(const GlobalTensor<From>& from, const GlobalTensor<To>& to,
                              uint32_t rows, const LocalTensor<float>* lengths) {
    const uint32_t all = rows * width_;
    LocalTensor<From> x = read_.template AllocTensor<From>();
    const uint16_t blocks = width_ * sizeof(From) / kBlock;
    const uint16_t skipped = 2 * blocks;
    AscendC::DataCopy(x, from,
                      AscendC::DataCopyParams(static_cast<uint16_t>(rows), blocks, skipped, 0));
    read_.EnQue(x);
    x = read_.template DeQue<From>();
    Barrier();
    Widen(wide_, x, all);
    read_.FreeTensor(x);
    Barrier();
    if (lengths != nullptr) {
      Stretch(rows * tiling_.heads, *lengths);
    }
    LocalTensor<To> y = written_.template AllocTensor<To>();
    Narrow(y, wide_, all);
    written_.EnQue(y);
    y = written_.template DeQue<To>();
    AscendC::DataCopy(to, y, all);
    written_.FreeTensor(y);
  }

  // wide_ *= lengths / max(|wide_|, 1e-12), a head.
  __aicore__ inline void Stretch(uint32_t heads, const LocalTensor<float>& lengths) {
    const uint32_t d = tiling_.head_width;
    const uint8_t stride = d * kFloat / kBlock;  // from head to head, in blocks
    AscendC::Mul(squares_, wide_, wide_, heads * d);
    Barrier();
    AscendC::WholeReduceSum<float>(sums_, squares_, d, heads, 1, 1, stride);
    Barrier();
    AscendC::Maxs(sums_, sums_, 1e-24f, heads);
    Barrier();
    AscendC::Sqrt(sums_, sums_, heads);
    Barrier();
    AscendC::Div(sums_, lengths, sums_, heads);
    Barrier();
    Spread(column_, sums_, heads);
    Barrier();
    AscendC::Mul(wide_, wide_, column_, d, heads, {1, 1, 0, stride, stride, 1});
    Barrier();
  }

  UnitHeadsTiling tiling_;
  uint32_t width_;
  Share share_;
  GlobalTensor<From> qkv_;
  GlobalTensor<To> q_out_, k_out_, v_out_;
  AscendC::TQue<AscendC::TPosition::VECIN, 1> read_;
  AscendC::TQue<AscendC::TPosition::VECOUT, 1> written_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> wide_buffer_, squares_buffer_, column_buffer_,
      sums_buffer_, ones_buffer_, scales_buffer_;
  LocalTensor<float> wide_, squares_, column_, sums_, ones_, scales_;
};

}  // namespace var_transformer
