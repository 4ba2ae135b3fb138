// Convolutions that keep channels apart. Four taps of a channel lie in one 32-bit lane: bytes of four pixels are
// interleaved, so that one instruction multiplies and adds four taps of 16 channels.

#include "epilogue.h"

namespace inc {

namespace {

constexpr int64_t MOST_TAPS = 128;

// Four lines of 64 channels to four vectors of 16 lanes; vector j holds channels 16 L + 4 j of each 128-bit lane L.
INLINE void interleave(const uint8_t* const* taps, int64_t channel, __mmask64 mask, __m512i (&lines)[4]) {
    __m512i t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        t[i] = mask == ~0ull ? _mm512_loadu_si512(taps[i] + channel) : _mm512_maskz_loadu_epi8(mask, taps[i] + channel);
    const __m512i low01 = _mm512_unpacklo_epi8(t[0], t[1]), high01 = _mm512_unpackhi_epi8(t[0], t[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(t[2], t[3]), high23 = _mm512_unpackhi_epi8(t[2], t[3]);
    lines[0] = _mm512_unpacklo_epi16(low01, low23);
    lines[1] = _mm512_unpackhi_epi16(low01, low23);
    lines[2] = _mm512_unpacklo_epi16(high01, high23);
    lines[3] = _mm512_unpackhi_epi16(high01, high23);
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

// Pointers to the taps of one output pixel; what is missing to a multiple of four is padding, of weight zero.
INLINE void find_taps(const Matrix& m, int64_t row, int64_t quads, const uint8_t** taps) {
    const int64_t pixels = m.output_height * m.output_width, image = row / pixels, pixel = row % pixels;
    const int64_t top = pixel / m.output_width * m.stride_height - m.padding_height;
    const int64_t left = pixel % m.output_width * m.stride_width - m.padding_width;
    const uint8_t* origin = m.input + image * m.image_stride;
    int64_t tap = 0;
    for (int64_t i = 0; i < m.kernel_height; ++i) {
        const int64_t y = top + i * m.dilation_height;
        const bool line_inside = uint64_t(y) < uint64_t(m.height);
        for (int64_t j = 0; j < m.kernel_width; ++j, ++tap) {
            const int64_t x = left + j * m.dilation_width;
            const bool inside = line_inside & (uint64_t(x) < uint64_t(m.width));
            taps[tap] = inside ? origin + y * m.line_stride + x * m.pixel_stride : m.padding;
        }
    }
    for (; tap < 4 * quads; ++tap) taps[tap] = m.padding;
}

template <int QUADS>  // 0: any number
INLINE void multiply_pixel(const Matrix& m, const Epilogue& e, bool plain, int64_t row, int64_t any_quads) {
    const uint8_t* taps[MOST_TAPS];
    const int64_t quads = QUADS ? QUADS : any_quads;
    find_taps(m, row, quads, taps);
    for (int64_t channel = 0; channel < m.channels; channel += 64) {
        const __mmask64 mask = bytes(m.channels - channel);
        const int8_t* weight = m.weight + channel * 4 * quads;
        __m512i sums[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[v] = _mm512_setzero_si512();
#pragma GCC unroll 7
        for (int64_t quad = 0; quad < quads; ++quad) {
            __m512i lines[4];
            interleave(taps + 4 * quad, channel, mask, lines);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v)
                sums[v] = _mm512_dpbusd_epi32(sums[v], lines[v], _mm512_load_si512(weight + 256 * quad + 64 * v));
        }
        order(sums);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
            sums[v] = _mm512_add_epi32(sums[v], _mm512_loadu_si512(e.offset + channel + 16 * v));
        finish_any(sums, e, plain, row, channel, m.channels);
    }
}

}  // namespace

void run_depthwise(const Matrix& m) {
    const int64_t quads = ceil_div(m.taps, 4);
    const bool plain = is_plain(m.epilogue);
    parallel(m.rows, m.rows * m.channels * quads / 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            if (quads == 3) multiply_pixel<3>(m, m.epilogue, plain, row, quads);
            else if (quads == 7) multiply_pixel<7>(m, m.epilogue, plain, row, quads);
            else multiply_pixel<0>(m, m.epilogue, plain, row, quads);
        }
    });
}

}  // namespace inc
