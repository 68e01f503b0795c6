// Group norm of channels-last maps (arXiv:1803.08494), with an optional SiLU after it.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernel.h"

namespace {

constexpr int64_t chunk = 256;  // pixels whose sums one thread takes, whatever their number

// e^x to 2e-7 of itself; x is clipped to where that is a finite, normal number. Vectorizes.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float shifted = x * 1.44269504f + 12582912.0f;  // its low bits are round(x / ln 2)
    const float n = shifted - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

struct Shape {
    int64_t images, pixels, channels, groups;
    int64_t chunks() const { return (pixels + chunk - 1) / chunk; }
    int64_t begin(int64_t i) const { return i * chunk; }
    int64_t end(int64_t i) const { return std::min(pixels, (i + 1) * chunk); }
};

// of x (B, Y, X, C), gain (C), bias (C)
Shape shape_of(int64_t** shapes, void* groups) {
    const int64_t* x = shapes[0];
    const Shape s{x[0], x[1] * x[2], x[3], *static_cast<int32_t*>(groups)};
    expect(s.groups > 0 && s.channels % s.groups == 0);
    expect(shapes[1][0] == s.channels && shapes[2][0] == s.channels);
    return s;
}

// work(image, chunk) for every chunk of an image
template <typename Work>
void over_chunks(const Shape& s, int64_t image, Work work) {
    parallel_for(s.chunks(), [&](int64_t i) { work(image, i); });
}

// work(image) for every image: each on one thread where there are enough of them, else all on one
template <typename Work>
void over_images(const Shape& s, Work work) {
    if (s.pixels * s.channels == 0) return;  // nothing has a mean
    if (s.images >= thread_count()) return parallel_for(s.images, work);
    for (int64_t b = 0; b < s.images; ++b) work(b);
}

// Mean and 1 / standard deviation of the group of each channel, for one image.
struct Statistics {
    std::vector<float> mean, inverse_std;

    Statistics(const Shape& s, const float* x, int64_t image, float epsilon)
        : mean(s.channels), inverse_std(s.channels) {
        const int64_t c = s.channels, width = c / s.groups;
        const float* first = x + image * s.pixels * c;  // sums of x - first lose no digits
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
                inverse_std[j] = float(1 / std::sqrt(std::max(means[1], 0.0) + epsilon));
            }
        }
    }
};

template <bool silu>
void normalize(const Shape& s, const float* x, const float* gain, const float* bias, float epsilon,
               float* y) {
    const int64_t c = s.channels;
    over_images(s, [&](int64_t image) {
        const Statistics statistics(s, x, image, epsilon);
        const float* mean = statistics.mean.data();
        std::vector<float> factor(c), offset(c);
        bool far = false;  // from zero, for its spread: x - mean, first, loses no digits
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
void gradients(const Shape& s, const float* grad, const float* x, const float* gain,
               const float* bias, float epsilon, float* grad_x, float* grad_gain,
               float* grad_bias) {
    const int64_t c = s.channels, width = c / s.groups;
    std::vector<float> gains(s.images * c), biases(s.images * c);  // the gradients of each image
    over_images(s, [&](int64_t image) {
        const Statistics statistics(s, x, image, epsilon);
        const float *mean = statistics.mean.data(), *inverse_std = statistics.inverse_std.data();
        // the gradient before the SiLU stands in grad_x until the sums over the groups are known
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
        std::vector<float> along(c), constant(c);  // what the groups' statistics take away
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

template <bool silu>
void forward(void** params, int64_t** shapes) {
    normalize<silu>(shape_of(shapes, params[3]), floats(params, 0), floats(params, 1),
                    floats(params, 2), *floats(params, 4), floats(params, 5));
}

template <bool silu>
void backward(void** params, int64_t** shapes) {
    gradients<silu>(shape_of(shapes + 1, params[4]), floats(params, 0), floats(params, 1),
                    floats(params, 2), floats(params, 3), *floats(params, 5), floats(params, 6),
                    floats(params, 7), floats(params, 8));
}

}  // namespace

// x (B, Y, X, C), gain (C), bias (C), groups (1) int32, epsilon (1) -> normalized x
KERNEL(group_norm) { forward<false>(params, shapes); }
KERNEL(group_norm_silu) { forward<true>(params, shapes); }

// gradient of the result, x, gain, bias, groups, epsilon -> gradients of x, gain and bias
KERNEL(group_norm_grad) { backward<false>(params, shapes); }
KERNEL(group_norm_silu_grad) { backward<true>(params, shapes); }
