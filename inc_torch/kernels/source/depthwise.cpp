// Convolutions that keep channels apart. Four taps of a channel lie in one 32-bit lane: bytes of four pixels are
// interleaved, so that one instruction multiplies and adds four taps of 16 channels.

#include <vector>

#include "epilogue.h"

namespace inc {

namespace {

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

// Pointers to the taps of each pixel of an output line; what is missing to a multiple of four is padding, of weight
// zero. Returns through `first` and `last` the pixels all of whose taps are inside the line.
void find_taps(const Matrix& m, int64_t line, int64_t quads, const uint8_t** table, int64_t& first, int64_t& last) {
    const int64_t image = line / m.output_height;
    const int64_t top = line % m.output_height * m.stride_height - m.padding_height;
    const int64_t reach = (m.kernel_width - 1) * m.dilation_width;
    first = ceil_div(m.padding_width, m.stride_width);
    last = m.width + m.padding_width - reach > 0 ? ceil_div(m.width + m.padding_width - reach, m.stride_width) : 0;
    last = std::min(last, m.output_width);
    const uint8_t* origin = m.input + image * m.image_stride;
    for (int64_t tap = 0; tap < 4 * quads; ++tap) {
        const int64_t y = top + tap / m.kernel_width * m.dilation_height;
        const int64_t right = tap % m.kernel_width * m.dilation_width - m.padding_width;
        const bool inside = tap < m.taps && uint64_t(y) < uint64_t(m.height);
        const uint8_t* from = origin + y * m.line_stride;
        for (int64_t x = 0; x < m.output_width; ++x) {
            const int64_t place = x * m.stride_width + right;
            const bool there = inside & (uint64_t(place) < uint64_t(m.width));
            table[x * 4 * quads + tap] = there ? from + place * m.pixel_stride : m.padding;
        }
    }
}

INLINE void load_ordered(const void* from, __m512i (&vectors)[4]) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vectors[v] = _mm512_loadu_si512((const char*)from + 64 * v);
    order(vectors);  // its own inverse
}

// One output line, 64 channels. FAST: folded codes without a residual, packed without reordering the sums.
// Where a pixel has 16 or 32 channels, `together` pixels that lie side by side are one of 64.
template <int QUADS, bool FAST>
INLINE void multiply_line(const Matrix& m, const Epilogue& e, bool plain, const uint8_t* const* table, int64_t line,
                          int64_t channel, int64_t any_quads, int64_t first, int64_t last, int64_t together) {
    const int64_t quads = QUADS ? QUADS : any_quads;
    const __mmask64 some = bytes(m.channels - channel);
    const int8_t* weight = m.weight + channel * 4 * quads;
    __m512i offset[4], scale[4], bias[4];
    load_ordered(e.offset + channel, offset);
    load_ordered(e.scale + channel, scale);
    load_ordered(e.bias + channel, bias);
    const __m512i low = _mm512_set1_epi8(char(e.code_low)), high = _mm512_set1_epi8(char(e.code_high));
    uint8_t* output = (uint8_t*)e.output + line * m.output_width * e.output_stride + channel;
    const int64_t pitch = e.output_stride, width = m.output_width;
    for (int64_t x = 0; x < width;) {
        const bool many = FAST && together > 1 && x >= first && x + together <= last;
        const __mmask64 mask = many ? ~0ull : some;
        const uint8_t* const* taps = table + x * 4 * quads;
        __m512i sums[4] = {offset[0], offset[1], offset[2], offset[3]};
#pragma GCC unroll 7
        for (int64_t quad = 0; quad < quads; ++quad) {
            __m512i lines[4];
            interleave(taps + 4 * quad, channel, mask, lines);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v)
                sums[v] = _mm512_dpbusd_epi32(sums[v], lines[v], _mm512_load_si512(weight + 256 * quad + 64 * v));
        }
        if (FAST) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v)
                sums[v] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), _mm512_castsi512_ps(scale[v]),
                                                             _mm512_castsi512_ps(bias[v])));
            __m512i codes = _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
            codes = _mm512_min_epu8(_mm512_max_epu8(codes, low), high);
            if (mask == ~0ull) _mm512_storeu_si512(output + x * pitch, codes);
            else _mm512_mask_storeu_epi8(output + x * pitch, mask, codes);
        } else {
            order(sums);
            finish_any(sums, e, plain, line * width + x, channel, m.channels);
        }
        x += many ? together : 1;
    }
}

template <int QUADS>  // 0: any number
void multiply_lines(const Matrix& m, int64_t begin, int64_t end) {
    const Epilogue& e = m.epilogue;
    const int64_t quads = ceil_div(m.taps, 4);
    const bool plain = is_plain(e), fast = plain && e.output_type == UINT8 && e.residual_type == NOTHING;
    const bool dense = m.pixel_stride == m.channels && e.output_stride == m.channels && m.stride_width == 1;
    const int64_t together = dense && m.channels < 64 && 64 % m.channels == 0 ? 64 / m.channels : 1;
    std::vector<const uint8_t*> table(m.output_width * 4 * quads);
    for (int64_t line = begin; line < end; ++line) {
        int64_t first, last;
        find_taps(m, line, quads, table.data(), first, last);
        for (int64_t channel = 0; channel < m.channels; channel += 64) {
            if (fast) multiply_line<QUADS, true>(m, e, plain, table.data(), line, channel, quads, first, last, together);
            else multiply_line<QUADS, false>(m, e, plain, table.data(), line, channel, quads, first, last, together);
        }
    }
}

}  // namespace

void run_depthwise(const Matrix& m) {
    const int64_t quads = ceil_div(m.taps, 4), lines = m.rows / m.output_width;
    parallel(lines, m.rows * m.channels * quads / 8, [&](int64_t first, int64_t last) {
        if (quads == 3) multiply_lines<3>(m, first, last);
        else if (quads == 7) multiply_lines<7>(m, first, last);
        else multiply_lines<0>(m, first, last);
    });
}

}  // namespace inc
