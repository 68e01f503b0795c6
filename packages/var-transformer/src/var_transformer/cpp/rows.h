// Tokens of a batch as rows of channels, in chunks that threads share.
#pragma once

#include <algorithm>
#include <vector>

#include "common/kernel.h"
#include "common/threads.h"

struct Rows {
    static constexpr int64_t chunk = 16;  // tokens: sums do not depend on the number of threads
    int64_t images, tokens, channels;

    // Of array x (B, L, C)
    Rows(const Arrays& arrays, int x) {
        const auto x_blc = arrays.sizes<3>(x);
        images = x_blc[0], tokens = x_blc[1], channels = x_blc[2];
    }

    Arrays::Shape shape() const { return {images, tokens, channels}; }
    Arrays::Shape one_token() const { return {images, 1, channels}; }

    int64_t chunks() const { return (tokens + chunk - 1) / chunk; }

    // work(image, chunk, first row, row after the last) for all rows
    template <typename Work>
    void over_chunks(Work work) const {
        if (channels == 0) return;
        parallel_for(images * chunks(), [&](int64_t job) {
            const int64_t image = job / chunks(), i = job % chunks(), start = image * tokens;
            work(image, i, start + i * chunk, start + std::min(tokens, (i + 1) * chunk));
        });
    }
};

// Sums over the tokens of an image, a row of C for each chunk first.
class TokenSums {
   public:
    explicit TokenSums(const Rows& rows)
        : rows_(rows), parts_(rows.images * rows.chunks() * rows.channels, 0.0f) {}

    float* part(int64_t image, int64_t chunk) {
        return parts_.data() + (image * rows_.chunks() + chunk) * rows_.channels;
    }

    void add_up(float* total_b1c) {
        const int64_t c = rows_.channels;
        std::fill_n(total_b1c, rows_.images * c, 0.0f);
        for (int64_t b = 0; b < rows_.images; ++b) {
            for (int64_t i = 0; i < rows_.chunks(); ++i) {
                const float* from = part(b, i);
                float* to = total_b1c + b * c;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) to[j] += from[j];
            }
        }
    }

   private:
    const Rows& rows_;
    std::vector<float> parts_;
};
