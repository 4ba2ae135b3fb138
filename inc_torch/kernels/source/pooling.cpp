// Pooling of codes in channels-last order.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

struct Window {
    int64_t top, bottom, left, right;  // steps of the kernel that are inside the image
    const uint8_t* origin;             // of step (0, 0), perhaps outside
};

Window window(const Pool& p, int64_t row) {
    const int64_t pixels = p.output_height * p.output_width, image = row / pixels, pixel = row % pixels;
    const int64_t y = pixel / p.output_width * p.stride_height - p.padding_height;
    const int64_t x = pixel % p.output_width * p.stride_width - p.padding_width;
    auto first = [](int64_t at, int64_t dilation) { return at < 0 ? ceil_div(-at, dilation) : 0; };
    auto last = [](int64_t at, int64_t dilation, int64_t kernel, int64_t size) {
        return at >= size ? 0 : std::min(kernel, ceil_div(size - at, dilation));
    };
    return {first(y, p.dilation_height), last(y, p.dilation_height, p.kernel_height, p.height),
            first(x, p.dilation_width), last(x, p.dilation_width, p.kernel_width, p.width),
            p.input + image * p.image_stride + y * p.line_stride + x * p.pixel_stride};
}

template <typename Function>
INLINE void for_window(const Pool& p, const Window& w, const Function& function) {
    for (int64_t i = w.top; i < w.bottom; ++i)
        for (int64_t j = w.left; j < w.right; ++j)
            function(w.origin + i * p.dilation_height * p.line_stride + j * p.dilation_width * p.pixel_stride);
}

// Positions of the window that torch counts: those inside, and of the padding those that a kernel of this place covers.
int64_t divisor(const Pool& p, const Window& w, int64_t row) {
    if (!p.count_padding) return std::max<int64_t>(1, (w.bottom - w.top) * (w.right - w.left));
    const int64_t pixel = row % (p.output_height * p.output_width);
    const int64_t y = pixel / p.output_width * p.stride_height - p.padding_height;
    const int64_t x = pixel % p.output_width * p.stride_width - p.padding_width;
    return (std::min(y + p.kernel_height, p.height + p.padding_height) - y) *
           (std::min(x + p.kernel_width, p.width + p.padding_width) - x);
}

INLINE void store_average(const Pool& p, int64_t row, int64_t channel, __m512i sum, float factor, float zero,
                          __mmask16 mask) {
    __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(zero)), _mm512_set1_ps(factor));
    store_any(p.output, row * p.output_stride + channel, int32_t(p.output_type), y, p.inverse, p.shift, mask);
}

}  // namespace

void run_max_pool(const Pool& p) {
    const int64_t rows = p.batch * p.output_height * p.output_width;
    parallel(rows, rows * p.channels * p.kernel_height * p.kernel_width / 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const Window w = window(p, row);
            for (int64_t channel = 0; channel < p.channels; channel += 64) {
                const __mmask64 mask = bytes(p.channels - channel);
                __m512i most = _mm512_setzero_si512();
                for_window(p, w, [&](const uint8_t* pixel) {
                    most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(mask, pixel + channel));
                });
                _mm512_mask_storeu_epi8((uint8_t*)p.output + row * p.output_stride + channel, mask, most);
            }
        }
    });
}

void run_average_pool(const Pool& p) {
    const int64_t rows = p.batch * p.output_height * p.output_width;
    parallel(rows, rows * p.channels * p.kernel_height * p.kernel_width / 4, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const Window w = window(p, row);
            const float inside = float((w.bottom - w.top) * (w.right - w.left));
            const float factor = p.scale / float(divisor(p, w, row));
            for (int64_t channel = 0; channel < p.channels; channel += 16) {
                const __mmask16 mask = lanes(p.channels - channel);
                __m512i sum = _mm512_setzero_si512();
                for_window(p, w, [&](const uint8_t* pixel) {
                    sum = _mm512_add_epi32(sum, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, pixel + channel)));
                });
                store_average(p, row, channel, sum, factor, p.zero * inside, mask);
            }
        }
    });
}

void run_global_average_pool(const Pool& p) {
    const int64_t vectors = ceil_div(p.channels, 16);
    const float count = float(p.height * p.width);
    parallel(p.batch * vectors, p.batch * p.channels * p.height * p.width / 8, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t image = i / vectors, channel = 16 * (i % vectors);
            const __mmask16 mask = lanes(p.channels - channel);
            __m512i sum = _mm512_setzero_si512();
            for (int64_t y = 0; y < p.height; ++y)
                for (int64_t x = 0; x < p.width; ++x) {
                    const uint8_t* pixel =
                        p.input + image * p.image_stride + y * p.line_stride + x * p.pixel_stride + channel;
                    sum = _mm512_add_epi32(sum, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, pixel)));
                }
            store_average(p, image, channel, sum, p.scale / count, p.zero * count, mask);
        }
    });
}

}  // namespace inc
