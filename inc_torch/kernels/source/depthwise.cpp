// Convolutions that keep channels apart. Four taps of a channel lie in one 32-bit lane, so that one instruction multiplies
// and adds four taps of 16 channels. The four are one above the other: a column of taps is interleaved once, and then
// multiplied for each output that it belongs to.

#include <cstdlib>
#include <memory>

#include "epilogue.h"

namespace inc {

namespace {

constexpr int64_t COLUMN = 256;     // bytes of four rows of 64 channels
constexpr int64_t NEAR = 1 << 14;   // bytes of columns at a time: they and what they are made of stay in L1
constexpr int MOST_PIXELS = 4;      // at a time: 16 sums in registers

// Four lines of 64 channels to four vectors of 16 lanes; vector j holds channels 16 L + 4 j of each 128-bit lane L.
INLINE void interleave(const __m512i (&t)[4], uint8_t* to) {
    const __m512i low01 = _mm512_unpacklo_epi8(t[0], t[1]), high01 = _mm512_unpackhi_epi8(t[0], t[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(t[2], t[3]), high23 = _mm512_unpackhi_epi8(t[2], t[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi16(low01, low23));
    _mm512_store_si512(to + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_store_si512(to + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_store_si512(to + 192, _mm512_unpackhi_epi16(high01, high23));
}

// Back to the order of channels: vector L holds channels 16 L to 16 L + 15.
INLINE void order(__m512i (&sums)[4]) {
    const __m512i a = _mm512_shuffle_i32x4(sums[0], sums[1], 0x44), b = _mm512_shuffle_i32x4(sums[2], sums[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(sums[0], sums[1], 0xee), d = _mm512_shuffle_i32x4(sums[2], sums[3], 0xee);
    sums[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    sums[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    sums[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    sums[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

template <int OUTPUT, int RESIDUAL>
INLINE void finish_pixel(__m512i (&sums)[4], const Epilogue& e, int64_t row, int64_t channel, int64_t channels) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
        const int64_t column = channel + 16 * v;
        const __mmask16 mask = lanes(channels - column);
        const __m512 scale = _mm512_loadu_ps(e.scale + column), bias = _mm512_loadu_ps(e.bias + column);
        if (OUTPUT == UINT8) sums[v] = folded_codes<RESIDUAL>(sums[v], scale, bias, e, row, column, mask);
        else finish_float<RESIDUAL>(sums[v], scale, bias, e, row, column, mask);
    }
    if (OUTPUT == UINT8) store_folded<4>(sums, e, row, channel, bytes(channels - channel));
}

INLINE void finish_any(__m512i (&sums)[4], const Epilogue& e, bool plain, int64_t row, int64_t channel,
                       int64_t channels) {
    if (plain) {
        const bool alone = e.residual_type == NOTHING;
        if (e.output_type == UINT8)
            return alone ? finish_pixel<UINT8, NOTHING>(sums, e, row, channel, channels)
                         : finish_pixel<UINT8, UINT8>(sums, e, row, channel, channels);
        return alone ? finish_pixel<FLOAT32, NOTHING>(sums, e, row, channel, channels)
                     : finish_pixel<FLOAT32, FLOAT32>(sums, e, row, channel, channels);
    }
    alignas(64) int32_t memory[64];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_store_si512(memory + 16 * v, sums[v]);
    finish_tile(memory, 1, std::min<int64_t>(4, ceil_div(channels - channel, 16)), e, row, channel, channels - channel);
}

INLINE void load_ordered(const void* from, __m512i (&vectors)[4]) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vectors[v] = _mm512_loadu_si512((const char*)from + 64 * v);
    order(vectors);  // its own inverse
}

// What is the same for all lines. Where a pixel has 16 or 32 channels, `together` pixels that lie side by side are one
// of 64, if codes follow from the sums alone (`fast`).
struct Geometry {
    int64_t quads;      // of the rows of the kernel
    int64_t together;
    int64_t step;       // columns from output to output
    int64_t reach;      // columns of an output beyond its first one
    int64_t outputs;    // of a line, `together` pixels each
    int64_t run;        // outputs whose columns are made at once
    bool plain, fast;

    explicit Geometry(const Matrix& m) {
        const Epilogue& e = m.epilogue;
        plain = is_plain(e);
        fast = plain && e.output_type == UINT8 && e.residual_type == NOTHING;
        const bool dense = m.pixel_stride == m.channels && e.output_stride == m.channels && m.stride_width == 1;
        together = fast && dense && m.channels < 64 && 64 % m.channels == 0 ? 64 / m.channels : 1;
        quads = ceil_div(m.kernel_height, 4);
        step = together > 1 ? together : m.stride_width;
        reach = (m.kernel_width - 1) * m.dilation_width;
        outputs = ceil_div(m.output_width, together);
        run = std::clamp<int64_t>((NEAR / (COLUMN * quads) - reach) / step, MOST_PIXELS, outputs + MOST_PIXELS);
    }
    int64_t bytes() const { return ((run - 1) * step + reach + 1) * quads * COLUMN; }
};

// Four rows of taps; those outside of the image, and those that the kernel lacks, are one pixel of padding.
struct Rows {
    const uint8_t* line[4];
    int64_t pitch[4];

    Rows(const Matrix& m, const uint8_t* image, int64_t top, int64_t first) {
        for (int64_t i = 0; i < 4; ++i) {
            const int64_t y = top + (first + i) * m.dilation_height;
            const bool inside = first + i < m.kernel_height && uint64_t(y) < uint64_t(m.height);
            line[i] = inside ? image + y * m.line_stride : m.padding;
            pitch[i] = inside ? m.pixel_stride : 0;
        }
    }
};

// 64 bytes of the pixels from `x` on, some of which are outside of the image.
INLINE __m512i load_edge(const Matrix& m, const uint8_t* line, int64_t pitch, int64_t x, int64_t channel,
                         int64_t together) {
    if (together == 1 || pitch == 0) return _mm512_loadu_si512(m.padding + channel);
    alignas(64) uint8_t joined[64];
    for (int64_t i = 0; i < together; ++i) {
        const bool inside = uint64_t(x + i) < uint64_t(m.width);
        std::memcpy(joined + i * m.channels, inside ? line + (x + i) * pitch : m.padding, m.channels);
    }
    return _mm512_load_si512(joined);
}

// `count` columns from pixel `x` on, `distance` bytes apart. Bytes beyond the channels are read, and not used, where they
// belong to a pixel of the same line.
template <int ROWS>
void fill_columns(const Matrix& m, const Rows& rows, int64_t x, int64_t count, int64_t channel, int64_t together,
                  uint8_t* to, int64_t distance) {
    const __mmask64 some = bytes(m.channels - channel);
    const int64_t low = std::clamp<int64_t>(-x, 0, count);
    const int64_t high = std::clamp<int64_t>(m.width - together + 1 - x, low, count);
    const int64_t missing = together > 1 ? 0 : std::max<int64_t>(0, channel + 64 - m.channels);
    const int64_t whole = std::clamp<int64_t>(high - ceil_div(missing, m.pixel_stride), low, high);
    auto fill = [&](int64_t begin, int64_t end, auto load) {
        for (int64_t i = begin; i < end; ++i) {
            __m512i t[4] = {};
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) t[r] = load(rows.line[r] + (x + i) * rows.pitch[r] + channel, r, x + i);
            interleave(t, to + i * distance);
        }
    };
    auto edge = [&](const uint8_t*, int r, int64_t place) {
        return load_edge(m, rows.line[r], rows.pitch[r], place, channel, together);
    };
    fill(0, low, edge);
    fill(low, whole, [&](const uint8_t* from, int, int64_t) { return _mm512_loadu_si512(from); });
    fill(whole, high, [&](const uint8_t* from, int, int64_t) { return _mm512_maskz_loadu_epi8(some, from); });
    fill(high, count, edge);
}

// Constants of 64 channels in the order of the sums.
struct Channels {
    __m512i offset[4], scale[4], bias[4], low, high;
    Channels(const Epilogue& e, int64_t channel)
        : low(_mm512_set1_epi8(char(e.code_low))), high(_mm512_set1_epi8(char(e.code_high))) {
        load_ordered(e.offset + channel, offset);
        load_ordered(e.scale + channel, scale);
        load_ordered(e.bias + channel, bias);
    }
    __attribute__((always_inline)) __m512i codes(__m512i (&sums)[4]) const {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
            sums[v] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), _mm512_castsi512_ps(scale[v]),
                                                         _mm512_castsi512_ps(bias[v])));
        const __m512i packed =
            _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
        return _mm512_min_epu8(_mm512_max_epu8(packed, low), high);
    }
};

// PIXELS outputs of one line from `first` on, 64 channels.
template <int PIXELS>
void multiply(const Matrix& m, const Geometry& g, const Channels& c, const uint8_t* columns, const int8_t* weight,
              int64_t line, int64_t first, int64_t channel) {
    const int64_t distance = g.quads * COLUMN, apart = g.step * distance;
    __m512i sums[PIXELS][4];
#pragma GCC unroll 4
    for (int i = 0; i < PIXELS; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[i][v] = c.offset[v];
    for (int64_t j = 0; j < m.kernel_width; ++j) {
        const uint8_t* column = columns + j * m.dilation_width * distance;
        for (int64_t quad = 0; quad < g.quads; ++quad, column += COLUMN, weight += COLUMN) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const __m512i taps = _mm512_load_si512(weight + 64 * v);
#pragma GCC unroll 4
                for (int i = 0; i < PIXELS; ++i)
                    sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], _mm512_load_si512(column + i * apart + 64 * v), taps);
            }
        }
    }
    const Epilogue& e = m.epilogue;
#pragma GCC unroll 4
    for (int i = 0; i < PIXELS; ++i) {
        const int64_t x = (first + i) * g.together;
        if (g.fast) {
            uint8_t* output = (uint8_t*)e.output + (line * m.output_width + x) * e.output_stride + channel;
            const int64_t count = g.together > 1 ? (m.output_width - x) * m.channels : m.channels - channel;
            if (count >= 64) _mm512_storeu_si512(output, c.codes(sums[i]));
            else _mm512_mask_storeu_epi8(output, bytes(count), c.codes(sums[i]));
        } else {
            order(sums[i]);
            finish_any(sums[i], e, g.plain, line * m.output_width + x, channel, m.channels);
        }
    }
}

// One output line, 64 channels.
void multiply_line(const Matrix& m, const Geometry& g, const Channels& constants, uint8_t* columns, int64_t line,
                   int64_t channel) {
    using Kernel = decltype(&multiply<1>);
    static constexpr Kernel kernels[MOST_PIXELS] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>};
    const uint8_t* image = m.input + line / m.output_height * m.image_stride;
    const int64_t top = line % m.output_height * m.stride_height - m.padding_height;
    const int8_t* weight = m.weight + channel * 4 * g.quads * m.kernel_width;
    const int64_t distance = g.quads * COLUMN;
    for (int64_t begin = 0; begin < g.outputs; begin += g.run) {
        const int64_t end = std::min(begin + g.run, g.outputs), count = (end - begin - 1) * g.step + g.reach + 1;
        for (int64_t quad = 0; quad < g.quads; ++quad) {
            const auto fill = m.kernel_height - 4 * quad == 1 ? fill_columns<1> : fill_columns<4>;
            fill(m, Rows(m, image, top, 4 * quad), begin * g.step - m.padding_width, count, channel, g.together,
                 columns + quad * COLUMN, distance);
        }
        for (int64_t x = begin; x < end;) {
            const int64_t pixels = std::min<int64_t>(MOST_PIXELS, end - x);
            const uint8_t* first = columns + (x - begin) * g.step * distance;
            kernels[pixels - 1](m, g, constants, first, weight, line, x, channel);
            x += pixels;
        }
    }
}

struct Freed {
    void operator()(uint8_t* memory) const { std::free(memory); }
};

}  // namespace

void run_depthwise(const Matrix& m) {
    const Geometry g(m);
    const int64_t lines = m.rows / m.output_width, taps = g.quads * m.kernel_width;
    parallel(lines, m.rows * m.channels * taps / 8, [&](int64_t first, int64_t last) {
        const std::unique_ptr<uint8_t, Freed> columns((uint8_t*)std::aligned_alloc(64, g.bytes()));
        for (int64_t channel = 0; channel < m.channels; channel += 64) {
            const Channels constants(m.epilogue, channel);
            for (int64_t line = first; line < last; ++line) multiply_line(m, g, constants, columns.get(), line, channel);
        }
    });
}

}  // namespace inc
