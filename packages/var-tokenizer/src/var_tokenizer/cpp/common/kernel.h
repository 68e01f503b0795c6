// What every kernel shares: how MindSpore calls it, how it checks its arrays, what it returns.
#pragma once

#include <array>
#include <climits>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "variants.h"

// Only these names are visible outside a library: the others are the same in every library.
#define EXPORT extern "C" __attribute__((visibility("default")))

// What a kernel returns. All but `done` make MindSpore raise an error that names the kernel.
enum Status { done = 0, failed = 1, out_of_memory = 2, unfit_arrays = 3 };

// Ends a kernel whose arrays do not match, before it writes anything.
inline void expect(bool fits) {
    if (!fits) throw std::invalid_argument("arrays do not fit each other");
}

template <typename T>
constexpr const char* name_of = nullptr;  // as MindSpore calls the type
template <>
inline constexpr const char* name_of<float> = "float32";
template <>
inline constexpr const char* name_of<int32_t> = "int32";
template <>
inline constexpr const char* name_of<bool> = "bool";

// The arrays of a call, all of them dense: the inputs, then the outputs. A kernel asks for each by
// its expected shape; a missing or different array ends the kernel.
class Arrays {
   public:
    using Shape = std::vector<int64_t>;

    Arrays(int count, void** data, int* axes, int64_t** sizes, const char** types)
        : count_(count), data_(data), axes_(axes), sizes_(sizes), types_(types) {}

    Shape shape(int i) const {
        expect(i < count_);
        return Shape(sizes_[i], sizes_[i] + axes_[i]);
    }

    // The shape of array i, which has N axes.
    template <size_t N>
    std::array<int64_t, N> sizes(int i) const {
        expect(i < count_ && axes_[i] == N);
        std::array<int64_t, N> found;
        std::memcpy(found.data(), sizes_[i], sizeof found);
        return found;
    }

    int64_t size(int i) const {
        expect(i < count_);
        int64_t size = 1;
        for (int j = 0; j < axes_[i]; ++j) size *= sizes_[i][j];
        return size;
    }

    // Array i, which has this shape.
    template <typename T = float>
    T* get(int i, const Shape& expected) const {
        expect(shape(i) == expected);
        return typed<T>(i);
    }

    // Array i, which has this shape and elements of the type that NumPy and MindSpore call `type`.
    const void* get_as(const char* type, int i, const Shape& expected) const {
        expect(shape(i) == expected && (!types_ || std::strcmp(types_[i], type) == 0));
        return data_[i];
    }

    // The only element of array i.
    template <typename T = float>
    T element(int i) const {
        expect(size(i) == 1);
        return *typed<T>(i);
    }

   private:
    template <typename T>
    T* typed(int i) const {
        expect(!types_ || std::strcmp(types_[i], name_of<T>) == 0);
        return static_cast<T*>(data_[i]);
    }

    int count_;
    void** data_;
    int* axes_;
    int64_t** sizes_;
    const char** types_;
};

// Runs a kernel; what it throws becomes a status, because MindSpore, in C, can catch nothing.
template <typename Work>
int status_of(Work work) {
    try {
        work();
        return done;
    } catch (const std::bad_alloc&) {
        return out_of_memory;
    } catch (const std::invalid_argument&) {
        return unfit_arrays;
    } catch (...) {
        return failed;
    }
}

using Kernel = int(int count, void** data, int* axes, int64_t** sizes, const char** types,
                   void* stream, void* extra);

#define KERNEL_JOINED(name, variant) name##_##variant
#define KERNEL_OF(name, variant) KERNEL_JOINED(name, variant)  // e.g. conv2d_v3
#define DECLARE_KERNEL(name, variant) extern "C" Kernel name##_##variant;
#define LIST_KERNEL(name, variant) name##_##variant,

// The lowest variant also has what MindSpore looks up: `name`, which calls the chosen variant, and
// the functions that infer shapes.
#ifdef LOWEST_VARIANT
#define EXPORT_KERNEL(name)                                                                 \
    FOR_EACH_VARIANT(DECLARE_KERNEL, name)                                                  \
    EXPORT int name(int count, void** data, int* axes, int64_t** sizes, const char** types, \
                    void* stream, void* extra) {                                            \
        static Kernel* const variants[] = {FOR_EACH_VARIANT(LIST_KERNEL, name)};            \
        return variants[chosen_variant](count, data, axes, sizes, types, stream, extra);    \
    }
#define EXPORT_SHAPE(name)                                                            \
    EXPORT std::vector<int64_t> name##InferShape(int* axes, int64_t** sizes, void*) { \
        return name##_shape(Arrays(INT_MAX, nullptr, axes, sizes, nullptr));          \
    }
#else
#define EXPORT_KERNEL(name)
#define EXPORT_SHAPE(name)
#endif

// Defines a function with the signature of ops.Custom(func_type="aot"). Its body sees `arrays`,
// returns nothing, and throws if it fails.
#define KERNEL(name)                                                                            \
    static void name##_body(const Arrays& arrays);                                              \
    extern "C" int KERNEL_OF(name, VARIANT)(int count, void** data, int* axes, int64_t** sizes, \
                                            const char** types, void*, void*) {                 \
        return status_of([&] { name##_body(Arrays(count, data, axes, sizes, types)); });        \
    }                                                                                           \
    EXPORT_KERNEL(name)                                                                         \
    static void name##_body(const Arrays& arrays)

// Defines what MindSpore asks for where a graph is compiled for sizes not yet known: the shape of
// the one result of kernel `name`, from the shapes of `arrays`, which have no data.
#define RESULT_SHAPE(name)                                                           \
    [[maybe_unused]] static std::vector<int64_t> name##_shape(const Arrays& arrays); \
    EXPORT_SHAPE(name)                                                               \
    static std::vector<int64_t> name##_shape(const Arrays& arrays)
