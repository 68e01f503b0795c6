// Group norm of channels-last maps (arXiv:1803.08494), with an optional SiLU after it.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "common/exponential.h"
#include "common/kernel.h"
#include "common/threads.h"

namespace {

constexpr int64_t chunk = 256;  // pixels: sums do not depend on the number of threads

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// x (B, Y, X, C), gain (C), bias (C), groups (1) int32, epsilon (1)
struct Inputs {
    int64_t images, pixels, channels, groups;
    const float *x, *gain, *bias;
    float epsilon;

    // Of the arrays from `first` on
    Inputs(const Arrays& arrays, int first) {
        const auto size = arrays.sizes<4>(first);
        images = size[0], pixels = size[1] * size[2], channels = size[3];
        groups = arrays.element<int32_t>(first + 3), epsilon = arrays.element(first + 4);
        x = arrays.get(first, arrays.shape(first));
        gain = arrays.get(first + 1, {channels}), bias = arrays.get(first + 2, {channels});
        expect(groups > 0 && channels % groups == 0);
    }

    int64_t chunks() const { return (pixels + chunk - 1) / chunk; }
    int64_t begin(int64_t i) const { return i * chunk; }
    int64_t end(int64_t i) const { return std::min(pixels, (i + 1) * chunk); }
};

// work(image, chunk) for every chunk of an image
template <typename Work>
void over_chunks(const Inputs& s, int64_t image, Work work) {
    parallel_for(s.chunks(), [&](int64_t i) { work(image, i); });
}

// work(image) for every image: each on a thread if there are enough of them, else in turn
template <typename Work>
void over_images(const Inputs& s, Work work) {
    if (s.pixels * s.channels == 0) return;  // nothing has a mean
    if (s.images >= thread_count()) return parallel_for(s.images, work);
    for (int64_t b = 0; b < s.images; ++b) work(b);
}

// Mean and 1 / standard deviation of the group of each channel, for one image.
struct Statistics {
    std::vector<float> mean, inverse_std;

    Statistics(const Inputs& s, int64_t image) : mean(s.channels), inverse_std(s.channels) {
        const int64_t c = s.channels, width = c / s.groups;
        const float* first = s.x + image * s.pixels * c;  // sums of x - first lose no digits
        std::vector<float> sums(2 * s.chunks() * c, 0.0f);
        over_chunks(s, image, [&](int64_t, int64_t i) {
            float *sum = &sums[2 * i * c], *square = sum + c;
            for (int64_t p = s.begin(i); p < s.end(i); ++p) {
                const float* row = first + p * c;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) {
                    const float d = row[j] - first[j];
                    sum[j] += d;
                    square[j] += d * d;
                }
            }
        });
        const double n = double(s.pixels);
        for (int64_t g = 0; g < s.groups; ++g) {
            double means[2] = {0, 0};  // of the channels' means and of x squared about `centre`
            std::vector<double> channel_mean(width), channel_square(width);
            for (int64_t j = 0; j < width; ++j) {
                double sum = 0, square = 0;
                for (int64_t i = 0; i < s.chunks(); ++i) {
                    sum += sums[2 * i * c + g * width + j];
                    square += sums[(2 * i + 1) * c + g * width + j];
                }
                channel_mean[j] = first[g * width + j] + sum / n;
                channel_square[j] = square / n - (sum / n) * (sum / n);
                means[0] += channel_mean[j] / double(width);
            }
            for (int64_t j = 0; j < width; ++j) {
                const double d = channel_mean[j] - means[0];
                means[1] += (channel_square[j] + d * d) / double(width);
            }
            for (int64_t j = g * width; j < (g + 1) * width; ++j) {
                mean[j] = float(means[0]);
                inverse_std[j] = float(1 / std::sqrt(std::max(means[1], 0.0) + s.epsilon));
            }
        }
    }
};

template <bool silu>
void normalize(const Inputs& s, float* y) {
    const int64_t c = s.channels;
    const float *x = s.x, *gain = s.gain, *bias = s.bias;
    over_images(s, [&](int64_t image) {
        const Statistics statistics(s, image);
        const float* mean = statistics.mean.data();
        std::vector<float> factor(c), offset(c);
        bool far = false;  // from zero, for its spread: only x - mean loses no digits
        for (int64_t j = 0; j < c; ++j) {
            far = far || std::abs(mean[j] * statistics.inverse_std[j]) > 16;
            factor[j] = gain[j] * statistics.inverse_std[j];
        }
        for (int64_t j = 0; j < c; ++j) offset[j] = bias[j] - (far ? 0 : mean[j] * factor[j]);
        const auto apply = [&](auto centre) {
            over_chunks(s, image, [&](int64_t b, int64_t i) {
                const float *a = factor.data(), *d = offset.data();
                for (int64_t p = s.begin(i); p < s.end(i); ++p) {
                    const float* from = x + (b * s.pixels + p) * c;
                    float* to = y + (b * s.pixels + p) * c;
#pragma omp simd
                    for (int64_t j = 0; j < c; ++j) {
                        const float h = (centre ? from[j] - mean[j] : from[j]) * a[j] + d[j];
                        to[j] = silu ? h * sigmoid(h) : h;
                    }
                }
            });
        };
        if (far) {
            apply(std::true_type());
        } else {
            apply(std::false_type());  // a fifth faster
        }
    });
}

template <bool silu>
void gradients(const Arrays& arrays) {
    const Inputs s(arrays, 1);
    const int64_t c = s.channels, width = c / s.groups;
    const float *grad = arrays.get(0, arrays.shape(1)), *x = s.x, *gain = s.gain, *bias = s.bias;
    float *grad_x = arrays.get(6, arrays.shape(1)), *grad_gain = arrays.get(7, {c});
    float* grad_bias = arrays.get(8, {c});
    std::vector<float> gains(s.images * c), biases(s.images * c);  // the gradients of each image
    over_images(s, [&](int64_t image) {
        const Statistics statistics(s, image);
        const float *mean = statistics.mean.data(), *inverse_std = statistics.inverse_std.data();
        // grad_x holds the gradient before the SiLU until the sums over the groups are known
        std::vector<float> sums(2 * s.chunks() * c, 0.0f);
        over_chunks(s, image, [&](int64_t b, int64_t i) {
            float *sum_hat = &sums[2 * i * c], *sum = sum_hat + c;
            for (int64_t p = s.begin(i); p < s.end(i); ++p) {
                const int64_t row = (b * s.pixels + p) * c;
                const float *from = x + row, *above = grad + row;
                float* to = grad_x + row;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) {
                    const float hat = (from[j] - mean[j]) * inverse_std[j];
                    float g = above[j];
                    if (silu) {
                        const float h = hat * gain[j] + bias[j], sig = sigmoid(h);
                        g *= sig * (1.0f + h * (1.0f - sig));
                    }
                    to[j] = g;
                    sum_hat[j] += g * hat;
                    sum[j] += g;
                }
            }
        });
        float *to_gain = &gains[image * c], *to_bias = &biases[image * c];
        std::vector<float> along(c), constant(c);  // through the groups' statistics
        for (int64_t g = 0; g < s.groups; ++g) {
            double mean_hat = 0, mean_grad = 0;
            for (int64_t j = g * width; j < (g + 1) * width; ++j) {
                double sum_hat = 0, sum = 0;
                for (int64_t i = 0; i < s.chunks(); ++i) {
                    sum_hat += sums[2 * i * c + j];
                    sum += sums[(2 * i + 1) * c + j];
                }
                to_gain[j] = float(sum_hat), to_bias[j] = float(sum);
                mean_hat += gain[j] * sum_hat, mean_grad += gain[j] * sum;
            }
            const double n = double(s.pixels) * double(width);
            for (int64_t j = g * width; j < (g + 1) * width; ++j) {
                along[j] = float(mean_hat / n), constant[j] = float(mean_grad / n);
            }
        }
        over_chunks(s, image, [&](int64_t b, int64_t i) {
            const float *u = along.data(), *v = constant.data();
            for (int64_t p = s.begin(i); p < s.end(i); ++p) {
                const float* from = x + (b * s.pixels + p) * c;
                float* to = grad_x + (b * s.pixels + p) * c;
#pragma omp simd
                for (int64_t j = 0; j < c; ++j) {
                    const float hat = (from[j] - mean[j]) * inverse_std[j];
                    to[j] = inverse_std[j] * (gain[j] * to[j] - v[j] - hat * u[j]);
                }
            }
        });
    });
    for (int64_t j = 0; j < c; ++j) {
        double sum_gain = 0, sum_bias = 0;
        for (int64_t b = 0; b < s.images; ++b) sum_gain += gains[b * c + j];
        for (int64_t b = 0; b < s.images; ++b) sum_bias += biases[b * c + j];
        grad_gain[j] = float(sum_gain), grad_bias[j] = float(sum_bias);
    }
}

}  // namespace

// x (B, Y, X, C), gain (C), bias (C), groups (1) int32, epsilon (1) -> normalized x
KERNEL(group_norm) { normalize<false>(Inputs(arrays, 0), arrays.get(5, arrays.shape(0))); }
KERNEL(group_norm_silu) { normalize<true>(Inputs(arrays, 0), arrays.get(5, arrays.shape(0))); }

// gradient of the result, x, gain, bias, groups, epsilon -> gradients of x, gain and bias
KERNEL(group_norm_grad) { gradients<false>(arrays); }
KERNEL(group_norm_silu_grad) { gradients<true>(arrays); }
