// The kernels on the model, and the tiling by itself, for ctypes.
#include <cstring>

#include "kernels.cpp"

namespace {

char g_fault[256];

void Announce(void* begin, uint64_t bytes, bool result) {
  AscendC::TheCore().regions.push_back(
      {static_cast<uint8_t*>(begin), bytes, result, std::vector<uint8_t>(result ? bytes : 0)});
}

// Bytes of the results that no core wrote.
uint64_t Unwritten() {
  uint64_t count = 0;
  for (const AscendC::Region& region : AscendC::TheCore().regions) {
    for (const uint8_t times : region.written) count += times == 0;
  }
  return count;
}

template <typename F>
const char* Run(F kernel, uint64_t* unwritten, uint32_t* used) {
  AscendC::Core& core = AscendC::TheCore();
  core.most_used = 0;
  try {
    kernel();
  } catch (const std::exception& fault) {
    std::strncpy(g_fault, fault.what(), sizeof g_fault - 1);
    core.regions.clear();
    return g_fault;
  }
  *unwritten = Unwritten();
  *used = core.most_used;
  core.regions.clear();
  return nullptr;
}

}  // namespace

extern "C" {

void share_of(uint32_t rows, uint32_t cores, uint32_t core, Share* share) {
  *share = ShareOf(rows, cores, core);
}

uint32_t rows_of_tile(uint32_t row, uint32_t end, uint32_t length, uint32_t most) {
  return TileRows(row, end, length, most);
}

// Returns the bytes of local memory.
uint32_t plan_modulated_norm(uint32_t images, uint32_t length, uint32_t width, uint32_t from,
                             uint32_t to, uint32_t cores, float epsilon,
                             ModulatedNormTiling* tiling) {
  const DType a = static_cast<DType>(from), b = static_cast<DType>(to);
  *tiling = PlanModulatedNorm(images, length, width, a, b, cores, epsilon);
  return BuffersOf(tiling->tile_rows, width, Bytes(a), Bytes(b)).Total();
}

uint32_t plan_unit_heads(uint32_t images, uint32_t length, uint32_t heads, uint32_t head_width,
                         uint32_t capacity, uint32_t first, uint32_t from, uint32_t to,
                         uint32_t cores, UnitHeadsTiling* tiling) {
  const DType a = static_cast<DType>(from), b = static_cast<DType>(to);
  *tiling = PlanUnitHeads(images, length, heads, head_width, capacity, first, a, b, cores);
  return BuffersOf(tiling->tile_rows, heads, head_width, Bytes(a), Bytes(b)).Total();
}

// Both return what rule a kernel broke, or null.
const char* run_modulated_norm(uint32_t from, uint32_t to, void* x, void* scale, void* shift,
                               void* y, const ModulatedNormTiling* tiling, uint64_t* unwritten,
                               uint32_t* used) {
  const DType a = static_cast<DType>(from), b = static_cast<DType>(to);
  const uint64_t width = tiling->width, rows = tiling->images * tiling->length;
  Announce(x, rows * width * Bytes(a), false);
  for (void* operand : {scale, shift}) Announce(operand, tiling->images * width * Bytes(b), false);
  Announce(y, rows * width * Bytes(b), true);
  return Run([&] { LaunchModulatedNorm(a, b, nullptr, x, scale, shift, y, *tiling); }, unwritten,
             used);
}

const char* run_unit_heads(uint32_t from, uint32_t to, void* qkv, void* scale, void* q_out,
                           void* k_out, void* v_out, const UnitHeadsTiling* tiling,
                           uint64_t* unwritten, uint32_t* used) {
  const DType a = static_cast<DType>(from), b = static_cast<DType>(to);
  const uint64_t width = static_cast<uint64_t>(tiling->heads) * tiling->head_width;
  const uint64_t rows = static_cast<uint64_t>(tiling->images) * tiling->length;
  const uint64_t cached = static_cast<uint64_t>(tiling->images) * tiling->capacity;
  Announce(qkv, rows * 3 * width * Bytes(a), false);
  Announce(scale, tiling->heads * 4, false);
  Announce(q_out, rows * width * Bytes(b), true);
  for (void* cache : {k_out, v_out}) Announce(cache, cached * width * Bytes(b), true);
  return Run([&] { LaunchUnitHeads(a, b, nullptr, qkv, scale, q_out, k_out, v_out, *tiling); },
             unwritten, used);
}
}
