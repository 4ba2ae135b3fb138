// From sums of products to outputs: scale, bias, residual, activation, rounding.
#pragma once

#include "arguments.h"
#include "common.h"

namespace inc {

template <int RESIDUAL>
INLINE __m512 add_residual(__m512 y, const Epilogue& e, int64_t row, int64_t column, __mmask16 mask) {
    if (RESIDUAL == NOTHING) return y;
    const int64_t index = row * e.residual_stride + column;
    if (RESIDUAL != UINT8) return _mm512_add_ps(y, load_any(e.residual, index, RESIDUAL, 1, 0, mask));
    __m512 codes = load_codes((const uint8_t*)e.residual + index, mask);
    return _mm512_fmadd_ps(_mm512_sub_ps(codes, _mm512_set1_ps(e.residual_zero)), _mm512_set1_ps(e.residual_scale), y);
}

template <int OUTPUT, int RESIDUAL>
INLINE void finish(__m512i sum, __m512 scale, __m512 bias, const Epilogue& e, int64_t row, int64_t column,
                   __mmask16 mask) {
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
    y = add_residual<RESIDUAL>(y, e, row, column, mask);
    const int64_t index = row * e.output_stride + column;
    if (OUTPUT == UINT8) {
        store_bytes((uint8_t*)e.output + index, encode(y, e.inverse, e.shift, e.code_low, e.code_high), mask);
    } else {
        store_float((float*)e.output + index, clamp(y, e.low, e.high), mask);
    }
}

// Whether `finish` can do it, in registers: an activation that only clamps, last, and one of four pairs of types.
INLINE bool is_plain(const Epilogue& e) {
    if (e.activation > CLAMP || (e.activation == CLAMP && e.residual_type != NOTHING && !e.activate_last)) return false;
    if (e.output_type == BFLOAT16) return false;
    return e.residual_type == NOTHING || e.residual_type == e.output_type;
}

// All other cases, from a tile of sums in memory; vectors of 16 columns, `columns` of them wanted.
void finish_tile(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                 int64_t columns);

}  // namespace inc
