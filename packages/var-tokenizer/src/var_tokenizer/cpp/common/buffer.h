// Memory that is kept for the next call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

class Buffer {
   public:
    // At least `count` floats with arbitrary values, at a multiple of 64 bytes.
    float* floats(int64_t count) {
        if (count > size_) {
            data_.reset();
            data_.reset(static_cast<float*>(std::aligned_alloc(64, size_t(count + 15) / 16 * 64)));
            size_ = data_ ? count : 0;
            if (!data_) throw std::bad_alloc();
        }
        return data_.get();
    }

   private:
    std::unique_ptr<float, decltype(&std::free)> data_{nullptr, &std::free};
    int64_t size_ = 0;
};
