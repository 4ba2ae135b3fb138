// From sums of products to outputs: scale, bias, residual, activation, rounding.
#pragma once

#include "arguments.h"
#include "common.h"

namespace inc {

// Codes of one vector of columns, not yet saturated: `scale` and `bias` lead to steps of the output's grid.
template <int RESIDUAL>
INLINE __m512i folded_codes(__m512i sum, __m512 scale, __m512 bias, const Epilogue& e, int64_t row, int64_t column,
                            __mmask16 mask) {
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
    if (RESIDUAL == UINT8) {
        const uint8_t* from = (const uint8_t*)e.residual + row * e.residual_stride + column;
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from));
        y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(e.residual_factor), y);
    }
    return _mm512_cvtps_epi32(y);
}

// Up to four vectors of codes as bytes side by side, saturated.
template <int VECTORS>
INLINE __m512i side_by_side(const __m512i* codes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i first = _mm512_packs_epi32(codes[0], VECTORS > 1 ? codes[1] : codes[0]);
    const __m512i second = VECTORS > 2 ? _mm512_packs_epi32(codes[2], codes[VECTORS > 3 ? 3 : 2]) : first;
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
}

INLINE void store_codes(__m512i codes, const Epilogue& e, int64_t row, int64_t column, __mmask64 mask) {
    _mm512_mask_storeu_epi8((uint8_t*)e.output + row * e.output_stride + column, mask, codes);
}

// Saturate up to four vectors of codes, keep them within the limits, and store them side by side.
template <int VECTORS>
INLINE void store_folded(const __m512i* codes, const Epilogue& e, int64_t row, int64_t column, __mmask64 mask) {
    __m512i bytes = side_by_side<VECTORS>(codes);
    bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(char(e.code_low)));
    bytes = _mm512_min_epu8(bytes, _mm512_set1_epi8(char(e.code_high)));
    store_codes(bytes, e, row, column, mask);
}

template <int RESIDUAL>
INLINE void finish_float(__m512i sum, __m512 scale, __m512 bias, const Epilogue& e, int64_t row, int64_t column,
                         __mmask16 mask) {
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
    if (RESIDUAL == FLOAT32)
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, (const float*)e.residual + row * e.residual_stride + column));
    _mm512_mask_storeu_ps((float*)e.output + row * e.output_stride + column, mask, clamp(y, e.low, e.high));
}

// Whether it can be done in registers: an activation that only clamps, last, and one of four pairs of types.
INLINE bool is_plain(const Epilogue& e) {
    if (e.activation > CLAMP) return false;
    if (e.output_type == UINT8) return e.folded;
    if (e.activation == CLAMP && e.residual_type != NOTHING && !e.activate_last) return false;
    return e.output_type == FLOAT32 && (e.residual_type == NOTHING || e.residual_type == FLOAT32);
}

// Every case, from a tile of sums in memory; up to four vectors of 16 columns, `columns` of them wanted.
void finish_tile(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                 int64_t columns);

}  // namespace inc
