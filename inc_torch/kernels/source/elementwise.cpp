// Rounding to codes and back, sums, products and activations of whole tensors.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

struct Rounding {
    float inverse, shift;
    explicit Rounding(const Quantize& q)
        : inverse(float(1.0 / (q.dynamic ? q.dynamic[0] : q.scale))),
          shift(MANTISSA + (q.dynamic ? q.dynamic[1] : q.zero)) {}
};

INLINE __m512i codes_of(const Quantize& q, int64_t index, const Rounding& rounding, __mmask16 mask) {
    __m512 values = q.input_type == FLOAT32 ? load_float((const float*)q.input + index, mask)
                                            : load_bfloat16((const uint16_t*)q.input + index, mask);
    return encode(values, rounding.inverse, rounding.shift);
}

// The last dimension of both lies dense.
void quantize_dense(const Quantize& q, const Rounding& rounding, int64_t from, int64_t to) {
    uint8_t* output = (uint8_t*)q.output + to;
    const int64_t count = q.sizes[3];
    int64_t i = 0;
    for (; i + 64 <= count; i += 64)
        for (int64_t j = i; j < i + 64; j += 16) store_bytes(output + j, codes_of(q, from + j, rounding, 0xffff), 0xffff);
    for (; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        store_bytes(output + i, codes_of(q, from + i, rounding, mask), mask);
    }
}

// Planes to pixels: sizes[2] pixels of sizes[3] channels, dense pixels in the input, dense channels in the output.
void quantize_pixels(const Quantize& q, const Rounding& rounding, int64_t from, int64_t to) {
    uint8_t* output = (uint8_t*)q.output + to;
    const int64_t pixels = q.sizes[2], channels = q.sizes[3], plane = q.input_strides[3], pitch = q.output_strides[2];
    const __m512i low_byte = _mm512_set1_epi32(255);
    const __m512i compact = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (int64_t x = 0; x < pixels; x += 16) {
        const __mmask16 mask = lanes(pixels - x);
        if (channels == 3 && pitch == 3 && x + 18 <= pixels) {
            __m512i red = _mm512_and_si512(codes_of(q, from + x, rounding, mask), low_byte);
            __m512i green = _mm512_and_si512(codes_of(q, from + plane + x, rounding, mask), low_byte);
            __m512i blue = _mm512_and_si512(codes_of(q, from + 2 * plane + x, rounding, mask), low_byte);
            __m512i pixel = _mm512_or_si512(
                red, _mm512_or_si512(_mm512_slli_epi32(green, 8), _mm512_slli_epi32(blue, 16)));
            pixel = _mm512_shuffle_epi8(pixel, compact);
            uint8_t* place = output + 3 * x;  // 16 bytes for each 12: the next store, and the next block, mend the rest
            _mm_storeu_si128((__m128i*)place, _mm512_extracti32x4_epi32(pixel, 0));
            _mm_storeu_si128((__m128i*)(place + 12), _mm512_extracti32x4_epi32(pixel, 1));
            _mm_storeu_si128((__m128i*)(place + 24), _mm512_extracti32x4_epi32(pixel, 2));
            _mm_storeu_si128((__m128i*)(place + 36), _mm512_extracti32x4_epi32(pixel, 3));
            continue;
        }
        const int64_t count = std::min<int64_t>(16, pixels - x);
        for (int64_t c = 0; c < channels; ++c) {
            alignas(16) uint8_t codes[16];
            store_bytes(codes, codes_of(q, from + c * plane + x, rounding, mask), 0xffff);
            for (int64_t i = 0; i < count; ++i) output[(x + i) * pitch + c] = codes[i];
        }
    }
}

void dequantize_dense(const Quantize& q, int64_t from, int64_t to) {
    for (int64_t i = 0; i < q.sizes[3]; i += 16) {
        const __mmask16 mask = lanes(q.sizes[3] - i);
        __m512 values = load_any(q.input, from + i, UINT8, q.scale, q.zero, mask);
        store_any(q.output, to + i, q.output_type, values, 0, 0, mask);
    }
}

}  // namespace

void run_quantize(const Quantize& q) {
    const bool back = q.input_type == UINT8;
    const bool pixels = q.input_strides[3] != 1 && q.sizes[3] != 1;
    const Rounding rounding(q);
    const int64_t lines = q.sizes[0] * q.sizes[1] * (pixels ? 1 : q.sizes[2]);
    parallel(lines, lines * q.sizes[3] * (pixels ? q.sizes[2] : 1), [&](int64_t first, int64_t last) {
        for (int64_t line = first; line < last; ++line) {
            int64_t rest = line, from = 0, to = 0;
            for (int dimension = pixels ? 1 : 2; dimension >= 0; --dimension) {
                const int64_t index = rest % q.sizes[dimension];
                rest /= q.sizes[dimension];
                from += index * q.input_strides[dimension];
                to += index * q.output_strides[dimension];
            }
            if (back) dequantize_dense(q, from, to);
            else if (pixels) quantize_pixels(q, rounding, from, to);
            else quantize_dense(q, rounding, from, to);
        }
    });
}

namespace {

template <typename Function>
INLINE void for_vectors(const Elementwise& e, int64_t cost, const Function& function) {
    // Dense rows are one long row, cut into pieces for the threads.
    const bool flat = !e.channel_scale && (e.rows == 1 || (e.first_stride == e.columns && e.output_stride == e.columns &&
                                                          (!e.second || e.second_stride == e.columns)));
    const int64_t piece = 4096;
    const int64_t count = flat ? ceil_div(e.rows * e.columns, piece) : e.rows;
    parallel(count, e.rows * e.columns * cost, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t row = flat ? 0 : i;
            const int64_t begin = flat ? i * piece : 0;
            const int64_t end = flat ? std::min(begin + piece, e.rows * e.columns) : e.columns;
            for (int64_t column = begin; column < end; column += 16) function(row, column, lanes(end - column));
        }
    });
}

INLINE __m512 first_of(const Elementwise& e, int64_t row, int64_t column, __mmask16 mask) {
    return load_any(e.first, row * e.first_stride + column, e.first_type, e.first_scale, e.first_zero, mask);
}

INLINE __m512 second_of(const Elementwise& e, int64_t row, int64_t column, __mmask16 mask) {
    return load_any(e.second, row * e.second_stride + column, e.second_type, e.second_scale, e.second_zero, mask);
}

INLINE void write(const Elementwise& e, int64_t row, int64_t column, __m512 values, __mmask16 mask) {
    store_any(e.output, row * e.output_stride + column, e.output_type, values, e.inverse, e.shift, mask);
}

}  // namespace

void run_add(const Elementwise& e) {
    for_vectors(e, 1, [&](int64_t row, int64_t column, __mmask16 mask) {
        __m512 sum = _mm512_add_ps(first_of(e, row, column, mask), second_of(e, row, column, mask));
        write(e, row, column, activate(sum, e.activation, e.low, e.high), mask);
    });
}

void run_requantize(const Elementwise& e) {
    if (e.first_scale == 0) {  // one grid: bytes move
        parallel(e.rows, e.rows * e.columns / 4, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; ++row)
                std::memcpy((uint8_t*)e.output + row * e.output_stride,
                            (const uint8_t*)e.first + row * e.first_stride, e.columns);
        });
        return;
    }
    for_vectors(e, 1, [&](int64_t row, int64_t column, __mmask16 mask) {
        write(e, row, column, first_of(e, row, column, mask), mask);
    });
}

namespace {

void interleave_bytes(const uint8_t* even, const uint8_t* odd, uint8_t* output, int64_t columns) {
    for (int64_t column = 0; column < columns; column += 32) {
        const __mmask32 mask = __mmask32(bytes(columns - column));
        const __m512i low = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, even + column));
        const __m512i high = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, odd + column));
        _mm512_mask_storeu_epi16(output + 2 * column, mask, _mm512_or_si512(low, _mm512_slli_epi16(high, 8)));
    }
}

void interleave_floats(const float* even, const float* odd, float* output, int64_t columns) {
    for (int64_t column = 0; column < columns; ++column) {
        output[2 * column] = even[column];
        output[2 * column + 1] = odd[column];
    }
}

}  // namespace

void run_interleave(const Elementwise& e) {
    parallel(e.rows, e.rows * e.columns / 4, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const int64_t size = size_of(e.first_type);
            const char* even = (const char*)e.first + row * e.first_stride * size;
            const char* odd = (const char*)e.second + row * e.second_stride * size;
            char* to = (char*)e.output + row * e.output_stride * size;
            if (e.first_type == UINT8) interleave_bytes((const uint8_t*)even, (const uint8_t*)odd, (uint8_t*)to, e.columns);
            else interleave_floats((const float*)even, (const float*)odd, (float*)to, e.columns);
        }
    });
}

void run_gated(const Elementwise& e) {
    for_vectors(e, 3, [&](int64_t row, int64_t column, __mmask16 mask) {
        __m512 gate = activate(first_of(e, row, column, mask), e.activation, e.low, e.high);
        write(e, row, column, _mm512_mul_ps(gate, second_of(e, row, column, mask)), mask);
    });
}

void run_activate(const Elementwise& e) {
    for_vectors(e, 3, [&](int64_t row, int64_t column, __mmask16 mask) {
        write(e, row, column, activate(first_of(e, row, column, mask), e.activation, e.low, e.high), mask);
    });
}

namespace {

// FROM and TO: types of input and output; 0 is what the step says.
template <int FROM, int TO>
void affine_rows(const Elementwise& e, int64_t first, int64_t last) {
    for (int64_t column = 0; column < e.columns; column += 16) {
        const __mmask16 mask = lanes(e.columns - column);
        const __m512 factor = load_float(e.channel_scale + column, mask), shift = load_float(e.channel_shift + column, mask);
        for (int64_t row = first; row < last; ++row) {
            const __m512 x = load_any(e.first, row * e.first_stride + column, FROM ? FROM : e.first_type, e.first_scale,
                                      e.first_zero, mask);
            const __m512 y = activate(_mm512_fmadd_ps(x, factor, shift), e.activation, e.low, e.high);
            store_any(e.output, row * e.output_stride + column, TO ? TO : e.output_type, y, e.inverse, e.shift, mask);
        }
    }
}

}  // namespace

void run_affine(const Elementwise& e) {
    const bool codes = e.first_type == UINT8 && e.output_type == UINT8;
    const int64_t piece = 16;  // rows that stay in the cache from one vector of columns to the next
    parallel(ceil_div(e.rows, piece), e.rows * e.columns, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t end = std::min((i + 1) * piece, e.rows);
            if (codes) affine_rows<UINT8, UINT8>(e, i * piece, end);
            else affine_rows<0, 0>(e, i * piece, end);
        }
    });
}

namespace {

template <int TYPE>
void scale_rows(const Elementwise& e, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const float* factor = (const float*)e.second + row / e.rows_of_image * e.second_stride;
        for (int64_t column = 0; column < e.columns; column += 16) {
            const __mmask16 mask = lanes(e.columns - column);
            const __m512 values = load_any(e.first, row * e.first_stride + column, UINT8, e.first_scale, e.first_zero, mask);
            store_any(e.output, row * e.output_stride + column, TYPE,
                      _mm512_mul_ps(values, load_float(factor + column, mask)), e.inverse, e.shift, mask);
        }
    }
}

}  // namespace

void run_scale_channels(const Elementwise& e) {
    parallel(e.rows, e.rows * e.columns, [&](int64_t first, int64_t last) {
        if (e.output_type == UINT8) scale_rows<UINT8>(e, first, last);
        else scale_rows<FLOAT32>(e, first, last);
    });
}

}  // namespace inc
