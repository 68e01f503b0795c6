// The kernels as MindSpore operators, compiled by CustomOpBuilder: for graphs (shapes and types,
// and a KernelMod), and for PyNative (a runner behind a Python function).
//
//   var_modulated_norm(x (B,L,C), scale (B,1,C), shift (B,1,C)) -> y (B,L,C) of scale's type
//   var_cached_heads(qkv (B,L,3*H*d), scale (H), k_cache, v_cache (B,capacity,H,d), first)
//     -> q (B,L,H,d) of the caches' type; writes the caches
//
// For the backend "Ascend" the tests compile it against a stub of CANN's acl.h, and nox -s ascend
// builds it for a dry run. For "CPU" the tests build it with the kernels on their model of the
// instructions, and run it in PyNative mode.
#include <memory>
#include <string>
#include <vector>

#include "launch.h"
#include "ms_extension/all.h"
#ifdef CUSTOM_ASCEND_OP
#include "acl/acl.h"
#endif

namespace var_transformer {

using mindspore::ShapeVector;
using mindspore::TypeId;
using mindspore::kernel::KernelTensor;
using TypeIds = std::vector<TypeId>;
using mindspore::ops::InferInfoPtrList;
using KernelTensors = std::vector<KernelTensor*>;

constexpr float kEpsilon = 1e-6f;  // of the published layer norm

uint32_t VectorCores() {
#ifdef CUSTOM_ASCEND_OP
  int32_t device = 0;
  int64_t cores = 0;
  if (aclrtGetDevice(&device) == ACL_SUCCESS &&
      aclGetDeviceCapability(device, ACL_DEVICE_INFO_VECTOR_CORE_NUM, &cores) == ACL_SUCCESS) {
    return static_cast<uint32_t>(cores);
  }
#endif
  return 40;  // of the smallest 910B; the results are the same with any count
}

constexpr const char* kNames[] = {"Float32", "Float16", "BFloat16"};  // by DType

DType DTypeOf(TypeId type) {
  switch (type) {
    case mindspore::kNumberTypeFloat32:
      return DType::kFloat32;
    case mindspore::kNumberTypeFloat16:
      return DType::kFloat16;
    case mindspore::kNumberTypeBFloat16:
      return DType::kBfloat16;
    default:
      MS_LOG(EXCEPTION) << "dtype is " << mindspore::TypeIdToString(type)
                        << "; expected Float32, Float16 or BFloat16";
  }
}

// ---------------------------------------------------------------- checks
// A norm or heads: float32 to any type that is taken, a half type only to itself.
void CheckTypes(DType from, DType to) {
  if (from != DType::kFloat32 && from != to) {
    MS_LOG(EXCEPTION) << "dtypes are " << kNames[static_cast<int>(from)] << " and "
                      << kNames[static_cast<int>(to)] << "; expected Float32 to any, or equal ones";
  }
}

ModulatedNormTiling PlanNorm(const ShapeVector& x, const ShapeVector& scale,
                             const ShapeVector& shift, TypeId from_type, TypeId to_type) {
  const DType from = DTypeOf(from_type), to = DTypeOf(to_type);
  CheckTypes(from, to);
  if (x.size() != 3) {
    MS_LOG(EXCEPTION) << "x has shape " << x << "; expected (B, L, C)";
  }
  const ShapeVector modulation = {x[0], 1, x[2]};
  if (scale != modulation || shift != modulation) {
    MS_LOG(EXCEPTION) << "scale and shift have shapes " << scale << " and " << shift
                      << "; expected " << modulation;
  }
  const auto tiling = PlanModulatedNorm(x[0], x[1], x[2], from, to, VectorCores(), kEpsilon);
  if (tiling.tile_rows == 0) {
    MS_LOG(EXCEPTION) << "width is " << x[2] << "; expected a multiple of 64 up to 4096";
  }
  return tiling;
}

// Of one of q, k and v: (B, L, H, d).
ShapeVector HeadShape(const ShapeVector& qkv, const ShapeVector& scale) {
  if (qkv.size() != 3 || scale.size() != 1 || scale[0] <= 0 || qkv[2] % (3 * scale[0]) != 0) {
    MS_LOG(EXCEPTION) << "qkv and scale have shapes " << qkv << " and " << scale
                      << "; expected (B, L, 3 * H * d) and (H)";
  }
  return {qkv[0], qkv[1], scale[0], qkv[2] / (3 * scale[0])};
}

UnitHeadsTiling PlanHeads(const ShapeVector& q, const ShapeVector& k_cache,
                          const ShapeVector& v_cache, int64_t first, TypeId from, TypeId to) {
  if (k_cache != v_cache || k_cache.size() != 4 || k_cache[0] != q[0] || k_cache[2] != q[2] ||
      k_cache[3] != q[3]) {
    MS_LOG(EXCEPTION) << "caches have shapes " << k_cache << " and " << v_cache
                      << "; expected (B, capacity, H, d) of " << q;
  }
  if (first < 0 || first + q[1] > k_cache[1]) {
    MS_LOG(EXCEPTION) << "cache is full: it has " << k_cache[1] << " tokens; expected "
                      << first + q[1];
  }
  const DType a = DTypeOf(from), b = DTypeOf(to);
  CheckTypes(a, b);
  if (b == DType::kFloat32) {
    MS_LOG(EXCEPTION) << "dtype of the caches is Float32; expected Float16 or BFloat16";
  }
  const auto tiling = PlanUnitHeads(q[0], q[1], q[2], q[3], k_cache[1], first, a, b, VectorCores());
  if (tiling.tile_rows == 0) {
    MS_LOG(EXCEPTION) << "heads are " << q[2] << " of width " << q[3]
                      << "; expected at most 248, of a multiple of 16 up to 64, that fit the "
                         "unified buffer";
  }
  return tiling;
}

// ---------------------------------------------------------------- in graphs
class ModulatedNormInfer : public mindspore::ops::OpFuncImpl {
 public:
  mindspore::ShapeArray InferShape(const mindspore::PrimitivePtr&,
                                   const InferInfoPtrList& inputs) const override {
    PlanNorm(inputs[0]->GetShape(), inputs[1]->GetShape(), inputs[2]->GetShape(),
             inputs[0]->GetType(), inputs[1]->GetType());
    return {inputs[0]->GetShape()};
  }
  TypeIds InferType(const mindspore::PrimitivePtr&, const InferInfoPtrList& inputs) const override {
    if (inputs[2]->GetType() != inputs[1]->GetType()) {
      MS_LOG(EXCEPTION) << "dtype of shift is " << mindspore::TypeIdToString(inputs[2]->GetType())
                        << "; expected " << mindspore::TypeIdToString(inputs[1]->GetType())
                        << ", that of scale";
    }
    return {inputs[1]->GetType()};
  }
  bool GeneralInferRegistered() const override { return true; }
};

class CachedHeadsInfer : public mindspore::ops::OpFuncImpl {
 public:
  mindspore::ShapeArray InferShape(const mindspore::PrimitivePtr&,
                                   const InferInfoPtrList& inputs) const override {
    const auto heads = HeadShape(inputs[0]->GetShape(), inputs[1]->GetShape());
    PlanHeads(heads, inputs[2]->GetShape(), inputs[3]->GetShape(),
              inputs[4]->GetScalarValueWithCheck<int64_t>(), inputs[0]->GetType(),
              inputs[2]->GetType());
    return {heads};
  }
  TypeIds InferType(const mindspore::PrimitivePtr&, const InferInfoPtrList& inputs) const override {
    return {inputs[2]->GetType()};
  }
  bool GeneralInferRegistered() const override { return true; }
};

class Kernel : public mindspore::kernel::KernelMod {
 public:
  bool Init(const KernelTensors&, const KernelTensors&) override { return true; }
  int Resize(const KernelTensors& inputs, const KernelTensors& outputs) override {
    const int status = KernelMod::Resize(inputs, outputs);
    if (status == mindspore::kernel::KRET_OK) Plan(inputs, outputs);
    return status;
  }
  std::vector<mindspore::kernel::KernelAttr> GetOpSupport() override { return {}; }
  // Ascend's backend calls these, and KernelMod's own raise.
  void set_fullname(const std::string&) override {}
  void set_unique_name(const std::string&) override {}
  void set_is_monad(bool) override {}

 protected:
  virtual void Plan(const KernelTensors& inputs, const KernelTensors& outputs) = 0;
};

class ModulatedNormKernel : public Kernel {
 public:
  bool Launch(const KernelTensors& inputs, const KernelTensors&, const KernelTensors& outputs,
              void* stream) override {
    LaunchModulatedNorm(DTypeOf(inputs[0]->dtype_id()), DTypeOf(outputs[0]->dtype_id()), stream,
                        inputs[0]->device_ptr(), inputs[1]->device_ptr(), inputs[2]->device_ptr(),
                        outputs[0]->device_ptr(), tiling_);
    return true;
  }

 protected:
  void Plan(const KernelTensors& inputs, const KernelTensors&) override {
    tiling_ = PlanNorm(inputs[0]->GetShapeVector(), inputs[1]->GetShapeVector(),
                       inputs[2]->GetShapeVector(), inputs[0]->dtype_id(), inputs[1]->dtype_id());
  }

 private:
  ModulatedNormTiling tiling_;
};

class CachedHeadsKernel : public Kernel {
 public:
  bool Launch(const KernelTensors& inputs, const KernelTensors&, const KernelTensors& outputs,
              void* stream) override {
    LaunchUnitHeads(DTypeOf(inputs[0]->dtype_id()), DTypeOf(outputs[0]->dtype_id()), stream,
                    inputs[0]->device_ptr(), inputs[1]->device_ptr(), outputs[0]->device_ptr(),
                    inputs[2]->device_ptr(), inputs[3]->device_ptr(), tiling_);
    return true;
  }

 protected:
  void Plan(const KernelTensors& inputs, const KernelTensors& outputs) override {
    const auto heads = HeadShape(inputs[0]->GetShapeVector(), inputs[1]->GetShapeVector());
    tiling_ = PlanHeads(heads, inputs[2]->GetShapeVector(), inputs[3]->GetShapeVector(),
                        inputs[4]->GetValueWithCheck<int64_t>(), inputs[0]->dtype_id(),
                        outputs[0]->dtype_id());
  }

 private:
  UnitHeadsTiling tiling_;
};

// ---------------------------------------------------------------- in PyNative mode
template <typename F>
class Runner : public ms::pynative::PyboostRunner {
 public:
  Runner(const std::string& name, F launch) : PyboostRunner(name), launch_(launch) {}
  void LaunchKernel() override { launch_(inputs(), outputs(), stream()); }

 private:
  F launch_;
};

template <typename F>
void Run(const std::string& name, const std::vector<ms::Tensor>& inputs,
         const std::vector<ms::Tensor>& outputs, F launch) {
  std::make_shared<Runner<F>>(name, launch)->Run(inputs, outputs);
}

using Tensors = std::vector<ms::Tensor>;

ms::Tensor ModulatedNormEager(const ms::Tensor& x, const ms::Tensor& scale,
                              const ms::Tensor& shift) {
  const auto tiling =
      PlanNorm(x.shape(), scale.shape(), shift.shape(), x.data_type(), scale.data_type());
  ms::Tensor y(scale.data_type(), x.shape());
  Run("VarModulatedNorm", {x, scale, shift}, {y},
      [tiling](const Tensors& in, const Tensors& out, void* stream) {
        LaunchModulatedNorm(DTypeOf(in[0].data_type()), DTypeOf(out[0].data_type()), stream,
                            in[0].GetDataPtr(), in[1].GetDataPtr(), in[2].GetDataPtr(),
                            out[0].GetDataPtr(), tiling);
      });
  return y;
}

ms::Tensor CachedHeadsEager(const ms::Tensor& qkv, const ms::Tensor& scale,
                            const ms::Tensor& k_cache, const ms::Tensor& v_cache, int64_t first) {
  const auto heads = HeadShape(qkv.shape(), scale.shape());
  const auto tiling = PlanHeads(heads, k_cache.shape(), v_cache.shape(), first, qkv.data_type(),
                                k_cache.data_type());
  ms::Tensor q(k_cache.data_type(), heads);
  Run("VarCachedHeads", {qkv, scale, k_cache, v_cache}, {q},
      [tiling](const Tensors& in, const Tensors& out, void* stream) {
        LaunchUnitHeads(DTypeOf(in[0].data_type()), DTypeOf(out[0].data_type()), stream,
                        in[0].GetDataPtr(), in[1].GetDataPtr(), out[0].GetDataPtr(),
                        in[2].GetDataPtr(), in[3].GetDataPtr(), tiling);
      });
  return q;
}

}  // namespace var_transformer

// MindSpore's MS_CUSTOM_OPS_REGISTER can stand only once in a file: it names what it defines by an
// unexpanded __COUNTER__.
#define REGISTER_SHAPES(name, infer)   \
  namespace mindspore::ops {           \
  DECLARE_CUSTOM_OP_IMPL(name, infer); \
  }
#ifdef CUSTOM_ASCEND_OP
#define REGISTER(name, infer, Kernel)                              \
  REGISTER_SHAPES(name, infer)                                     \
  static const bool g_##name##_registered =                        \
      mindspore::kernel::CustomKernelFactory::Instance().Register( \
          "Custom_" #name, [] { return std::make_shared<Kernel>(); });
#else  // only Ascend's backend looks for such kernels
#define REGISTER(name, infer, Kernel) REGISTER_SHAPES(name, infer)
#endif

REGISTER(var_modulated_norm, var_transformer::ModulatedNormInfer,
         var_transformer::ModulatedNormKernel)
REGISTER(var_cached_heads, var_transformer::CachedHeadsInfer, var_transformer::CachedHeadsKernel)

PYBIND11_MODULE(MS_EXTENSION_NAME, module) {
  using namespace var_transformer;
  module.def("var_modulated_norm", PYBOOST_CALLER(1, ModulatedNormEager));
  module.def("var_cached_heads", PYBOOST_CALLER(1, CachedHeadsEager));
}
