#include "products.h"

#include <array>
#include <map>
#include <mutex>

#include "common/buffer.h"
#include "common/onednn.h"

namespace {

using namespace onednn;

// A product of one size and order of its matrices, as oneDNN compiles it
class Product {
   public:
    Product(int64_t m, int64_t n, int64_t depth, Matrix left, Matrix right, bool biased) {
        const Desc a = strided({m, depth}, {left.row, left.column});
        const Desc b = strided({depth, n}, {right.row, right.column});
        const Desc bias = biased ? strided({1, n}, {n, 1}) : nullptr;
        const Desc c = strided({m, n}, {n, 1});
        const Attr attr = with_scratchpad();
        dnnl_primitive_desc* created;
        check(matmul_primitive_desc_create(&created, engine, a.get(), b.get(), bias.get(), c.get(),
                                           attr.get()));
        const PrimitiveDesc desc(created);
        const dnnl_memory_desc* scratch = primitive_desc_query_md(created, query_scratchpad, 0);
        check(!scratch);
        scratchpad_floats_ = int64_t(memory_desc_get_size(scratch) + 3) / 4;
        a_ = memory_of(a.get()), b_ = memory_of(b.get()), c_ = memory_of(c.get());
        if (biased) bias_ = memory_of(bias.get());
        scratchpad_ = memory_of(scratch);
        primitive_ = primitive_of(created);
    }

    void run(const float* a, const float* b, const float* bias, float* c) const {
        static Buffer& scratchpad = *new Buffer;
        std::vector<Argument> arguments;
        const auto add = [&](int index, const Memory& memory, const float* data) {
            check(memory_set_data_handle(memory.get(), const_cast<float*>(data)));
            arguments.push_back({index, memory.get()});
        };
        add(arg_src, a_, a);
        add(arg_weights, b_, b);
        add(arg_dst, c_, c);
        if (bias_) add(arg_bias, bias_, bias);
        if (scratchpad_floats_) {
            add(arg_scratchpad, scratchpad_, scratchpad.floats(scratchpad_floats_));
        }
        execute(primitive_, arguments);
    }

   private:
    Memory a_, b_, bias_, c_, scratchpad_;
    Primitive primitive_;
    int64_t scratchpad_floats_;
};

}  // namespace

void matrix_product(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, const float* bias,
                    float* c) {
    if (m == 0 || n == 0) return;
    if (depth == 0) {  // oneDNN writes nothing
        for (int64_t i = 0; i < m * n; ++i) c[i] = bias ? bias[i % n] : 0;
        return;
    }
    if (!compiles) {
        for (int64_t i = 0; bias && i < m; ++i) std::copy_n(bias, n, c + i * n);
        // a single row or column may claim any step; oneDNN wants that of a whole one
        const auto rows = [](Matrix x, int64_t high, int64_t wide) {
            return x.column == 1 ? Rows{x.data, std::max(x.row, wide)}
                                 : Rows{x.data, std::max(x.column, high), true};
        };
        return onednn::multiply(m, n, depth, rows(a, m, depth), rows(b, depth, n), bias ? 1 : 0, c);
    }
    // all threads share the products that are kept, their arguments and the scratchpad
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    constexpr size_t most = 1024;  // sizes; a model has few, but a caller may vary one without end
    static auto& known = *new std::map<std::array<int64_t, 6>, Product>;  // never destroyed: a
    if (known.size() > most) known.clear();  // thread may be at work when the process ends
    const std::array<int64_t, 6> key{m, n, depth, a.column == 1, b.column == 1, bias != nullptr};
    on_threads(threads_for(m * n * depth), [&] {
        known.try_emplace(key, m, n, depth, a, b, bias).first->second.run(a.data, b.data, bias, c);
    });
}
