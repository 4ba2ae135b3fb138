// Rows of a convolution: where the pixels of each tap lie.

#include "matrix.h"

namespace inc {

namespace {

// Pointers for `count` neighbouring pixels of one line and one tap, those from `begin` to `end` inside the image.
INLINE void fill_line(const uint8_t** entry, const uint8_t* origin, int64_t step, const uint8_t* padding, int64_t begin,
                      int64_t end, int64_t count) {
    std::fill(entry, entry + begin, padding);
    for (int64_t i = begin; i < end; ++i) entry[i] = origin + i * step;
    std::fill(entry + end, entry + count, padding);
}

}  // namespace

void fill_pointers(const Matrix& m, const uint8_t* input, const Block& block, const uint8_t** table) {
    const auto [first, count] = block;
    if (m.spatial == 0) {
        for (int64_t r = 0; r < count; ++r) table[r] = input + (first + r) * m.pixel_stride;
        return;
    }
    const int64_t pixels = m.output_height * m.output_width, step = m.stride_width * m.pixel_stride;
    for (int64_t j = 0; j < m.kernel_width; ++j) {
        const int64_t right = j * m.dilation_width - m.padding_width;
        const int64_t low = right < 0 ? ceil_div(-right, m.stride_width) : 0;
        const int64_t high = right < m.width ? ceil_div(m.width - right, m.stride_width) : 0;
        int64_t image = first / pixels, y = first % pixels / m.output_width, x = first % m.output_width;
        for (int64_t r = 0; r < count;) {
            const int64_t run = std::min(m.output_width - x, count - r);
            const int64_t begin = std::clamp<int64_t>(low - x, 0, run), end = std::clamp(high - x, begin, run);
            const uint8_t* origin = input + image * m.image_stride + (x * m.stride_width + right) * m.pixel_stride;
            for (int64_t i = 0; i < m.kernel_height; ++i) {
                const int64_t line = y * m.stride_height - m.padding_height + i * m.dilation_height;
                const bool inside = uint64_t(line) < uint64_t(m.height);
                fill_line(table + (i * m.kernel_width + j) * BLOCK + r, origin + line * m.line_stride, step, m.padding,
                          inside ? begin : run, inside ? end : run, run);
            }
            r += run;
            x = 0;
            if (++y == m.output_height) y = 0, ++image;
        }
    }
}

namespace {

// A copy of the images with their borders, so that a line of the kernel is one run of bytes.
void add_borders(const Matrix& m, int64_t images) {
    const int64_t width = m.width + 2 * m.padding_width, height = m.height + 2 * m.padding_height;
    const int64_t line = width * m.channels, border = m.padding_width * m.channels;
    const int zero = int(m.padding[0]);
    parallel(images * height, images * height * line / 2, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t image = i / height, y = i % height - m.padding_height;
            uint8_t* to = m.scratch + i * line;
            if (y < 0 || y >= m.height) {
                std::memset(to, zero, line);
                continue;
            }
            std::memset(to, zero, border);
            std::memcpy(to + border, m.input + image * m.image_stride + y * m.line_stride, m.width * m.channels);
            std::memset(to + line - border, zero, border);
        }
    });
}

}  // namespace

// Pixels of what is left are `channels` bytes apart. Runs are read in whole quads: `scratch` is that much longer, and the
// weights there are 0.
Matrix on_bordered_images(const Matrix& m) {
    add_borders(m, m.rows / (m.output_height * m.output_width));
    Matrix inner = m;
    inner.input = m.scratch;
    inner.depth = ceil_div(m.depth, 4) * 4;
    inner.width = m.width + 2 * m.padding_width;
    inner.height = m.height + 2 * m.padding_height;
    inner.pixel_stride = m.channels;
    inner.line_stride = inner.width * m.channels;
    inner.image_stride = inner.height * inner.line_stride;
    inner.padding_height = inner.padding_width = 0;
    inner.kernel_width = 1;
    return inner;
}

}  // namespace inc
