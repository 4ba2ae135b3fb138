#include "epilogue.h"

namespace inc {

namespace {

double tail(double u, bool by_tanh) {
    double cdf = by_tanh ? 0.5 * (1 - std::tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)))
                         : 0.5 * std::erfc(u * 0.7071067811865476);
    return u * cdf;
}

// The cubic through four Chebyshev points of each piece, in the distance from its middle.
Bump fit(bool by_tanh) {
    Bump bump;
    for (int piece = 0; piece < 32; ++piece) {
        double points[4], difference[4];
        for (int i = 0; i < 4; ++i) {
            points[i] = 0.5 * std::cos((2 * i + 1) * 3.14159265358979323846 / 8);
            difference[i] = tail((piece + points[i]) / Bump::PIECES_PER_UNIT, by_tanh);
        }
        for (int order = 1; order < 4; ++order)
            for (int i = 3; i >= order; --i)
                difference[i] = (difference[i] - difference[i - 1]) / (points[i] - points[i - order]);
        double polynomial[4] = {difference[3], 0, 0, 0};
        for (int i = 2; i >= 0; --i) {
            for (int power = 3; power > 0; --power) polynomial[power] = polynomial[power - 1] - points[i] * polynomial[power];
            polynomial[0] = difference[i] - points[i] * polynomial[0];
        }
        if (piece == 0) polynomial[0] = 0;  // gelu(0) = 0
        for (int power = 0; power < 4; ++power) bump.coefficients[power][piece] = float(polynomial[power]);
    }
    return bump;
}

// Codes alone: no residual, all vectors of a row at once.
template <int ACTIVATION, int VECTORS>
void finish_codes(const int32_t* sums, int64_t rows, const Epilogue& e, int64_t row, int64_t column, int64_t columns) {
    const __mmask64 mask = bytes(std::min(columns, int64_t(16 * VECTORS)));
    const __m512 low = _mm512_set1_ps(MANTISSA), high = _mm512_set1_ps(MANTISSA + 255);
    const __m512 inverse = _mm512_set1_ps(e.inverse), shift = _mm512_set1_ps(e.shift);
    const __m512i low_byte = _mm512_set1_epi32(255);
    for (int64_t r = 0; r < rows; ++r) {
        __m512i codes[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            __m512 y = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + (r * VECTORS + v) * 16));
            y = _mm512_fmadd_ps(y, _mm512_loadu_ps(e.scale + column + 16 * v),
                                _mm512_loadu_ps(e.bias + column + 16 * v));
            y = _mm512_fmadd_ps(activate(y, ACTIVATION, e.low, e.high), inverse, shift);
            y = _mm512_min_ps(high, _mm512_max_ps(low, y));
            codes[v] = _mm512_and_si512(_mm512_castps_si512(y), low_byte);
        }
        store_codes(side_by_side<VECTORS>(codes), e, row + r, column, mask);
    }
}

// Floats or codes that clamp, with or without a residual of the same type.
template <int VECTORS, int OUTPUT, int RESIDUAL>
void finish_plain(const int32_t* sums, int64_t rows, const Epilogue& e, int64_t row, int64_t column, int64_t columns) {
    __m512 scale[VECTORS], bias[VECTORS];
    __mmask16 masks[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        scale[v] = _mm512_loadu_ps(e.scale + column + 16 * v), bias[v] = _mm512_loadu_ps(e.bias + column + 16 * v);
        masks[v] = lanes(columns - 16 * v);
    }
    const __mmask64 mask = bytes(std::min(columns, int64_t(16 * VECTORS)));
    for (int64_t r = 0; r < rows; ++r, sums += 16 * VECTORS) {
        __m512i codes[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const __m512i sum = _mm512_loadu_si512(sums + 16 * v);
            const int64_t place = column + 16 * v;
            if (OUTPUT == UINT8) codes[v] = folded_codes<RESIDUAL>(sum, scale[v], bias[v], e, row + r, place, masks[v]);
            else finish_float<RESIDUAL>(sum, scale[v], bias[v], e, row + r, place, masks[v]);
        }
        if (OUTPUT == UINT8) store_folded<VECTORS>(codes, e, row + r, column, mask);
    }
}

template <int ACTIVATION>
void finish_rows(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                 int64_t columns) {
    const bool first = e.residual_type != NOTHING && !e.activate_last;
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t place = column + v * 16;
        const __mmask16 mask = lanes(columns - v * 16);
        const __m512 scale = _mm512_loadu_ps(e.scale + place), bias = _mm512_loadu_ps(e.bias + place);
        for (int64_t r = 0; r < rows; ++r) {
            __m512i sum = _mm512_loadu_si512(sums + (r * vectors + v) * 16);
            __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
            if (first) y = activate(y, ACTIVATION, e.low, e.high);
            const int64_t index = (row + r) * e.residual_stride + place;
            if (e.residual_type != NOTHING)
                y = _mm512_add_ps(
                    y, load_any(e.residual, index, e.residual_type, e.residual_scale, e.residual_zero, mask));
            if (!first) y = activate(y, ACTIVATION, e.low, e.high);
            store_any(e.output, (row + r) * e.output_stride + place, e.output_type, y, e.inverse, e.shift, mask);
        }
    }
}

}  // namespace

const Bump bumps[2] = {fit(false), fit(true)};

namespace {

Bump in_pieces(Bump bump) {
    for (auto& power : bump.coefficients)
        for (float& coefficient : power) coefficient *= Bump::PIECES_PER_UNIT;
    return bump;
}

const Bump folded_bumps[2] = {in_pieces(bumps[0]), in_pieces(bumps[1])};

// Codes of GELU, folded: `scale` and `bias` lead to pieces of the bump, `inverse` and `shift` from them to codes.
template <int VECTORS>
void finish_folded_gelu(const int32_t* sums, int64_t rows, const Epilogue& e, int64_t row, int64_t column,
                        int64_t columns) {
    const Bump& bump = folded_bumps[e.activation - GELU];
    const __mmask64 mask = bytes(std::min(columns, int64_t(16 * VECTORS)));
    const __m512 magic = _mm512_set1_ps(MANTISSA), last = _mm512_set1_ps(31.0f), zero = _mm512_setzero_ps();
    const __m512 inverse = _mm512_set1_ps(e.inverse), shift = _mm512_set1_ps(e.shift);
    __m512 tables[4][2];
#pragma GCC unroll 4
    for (int power = 0; power < 4; ++power)
        for (int half = 0; half < 2; ++half) tables[power][half] = _mm512_load_ps(bump.coefficients[power] + 16 * half);
    for (int64_t r = 0; r < rows; ++r) {
        __m512i codes[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            __m512 y = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + (r * VECTORS + v) * 16));
            y = _mm512_fmadd_ps(y, _mm512_loadu_ps(e.scale + column + 16 * v),
                                _mm512_loadu_ps(e.bias + column + 16 * v));
            const __m512 magnitude = _mm512_range_ps(y, last, 0b1010);  // the smaller magnitude, without its sign
            const __m512i piece = _mm512_castps_si512(_mm512_add_ps(magnitude, magic));
            const __m512 rest = _mm512_reduce_ps(magnitude, 0);
            auto pick = [&](int power) { return _mm512_permutex2var_ps(tables[power][0], piece, tables[power][1]); };
            __m512 sum = _mm512_fmadd_ps(pick(3), rest, pick(2));
            sum = _mm512_fmadd_ps(sum, rest, pick(1));
            sum = _mm512_fmadd_ps(sum, rest, pick(0));
            y = _mm512_sub_ps(_mm512_max_ps(zero, y), sum);
            codes[v] = _mm512_cvtps_epi32(_mm512_fmadd_ps(y, inverse, shift));
        }
        store_folded<VECTORS>(codes, e, row + r, column, mask);
    }
}

template <int ACTIVATION>
void finish_activated(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                      int64_t columns) {
    if (e.output_type != UINT8 || e.residual_type != NOTHING)
        return finish_rows<ACTIVATION>(sums, rows, vectors, e, row, column, columns);
    switch (vectors) {
        case 1: return finish_codes<ACTIVATION, 1>(sums, rows, e, row, column, columns);
        case 2: return finish_codes<ACTIVATION, 2>(sums, rows, e, row, column, columns);
        case 3: return finish_codes<ACTIVATION, 3>(sums, rows, e, row, column, columns);
        default: return finish_codes<ACTIVATION, 4>(sums, rows, e, row, column, columns);
    }
}

// What has a way of its own for each number of vectors; false if it is none of that.
template <int VECTORS>
bool finish_vectors(const int32_t* sums, int64_t rows, const Epilogue& e, int64_t row, int64_t column, int64_t columns) {
    if (is_plain(e)) {
        if (e.output_type == UINT8) {
            if (e.residual_type == NOTHING) finish_plain<VECTORS, UINT8, NOTHING>(sums, rows, e, row, column, columns);
            else finish_plain<VECTORS, UINT8, UINT8>(sums, rows, e, row, column, columns);
        } else {
            if (e.residual_type == NOTHING) finish_plain<VECTORS, FLOAT32, NOTHING>(sums, rows, e, row, column, columns);
            else finish_plain<VECTORS, FLOAT32, FLOAT32>(sums, rows, e, row, column, columns);
        }
        return true;
    }
    if (!e.folded) return false;
    finish_folded_gelu<VECTORS>(sums, rows, e, row, column, columns);
    return true;
}

}  // namespace

void finish_tile(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                 int64_t columns) {
    const auto finish = vectors == 1   ? finish_vectors<1>
                        : vectors == 2 ? finish_vectors<2>
                        : vectors == 3 ? finish_vectors<3>
                                       : finish_vectors<4>;
    if (finish(sums, rows, e, row, column, columns)) return;
    switch (e.activation) {
        case NONE: return finish_activated<NONE>(sums, rows, vectors, e, row, column, columns);
        case CLAMP: return finish_activated<CLAMP>(sums, rows, vectors, e, row, column, columns);
        case GELU: return finish_activated<GELU>(sums, rows, vectors, e, row, column, columns);
        case GELU_TANH: return finish_activated<GELU_TANH>(sums, rows, vectors, e, row, column, columns);
        case SILU: return finish_activated<SILU>(sums, rows, vectors, e, row, column, columns);
        case HARDSWISH: return finish_activated<HARDSWISH>(sums, rows, vectors, e, row, column, columns);
        case HARDSIGMOID: return finish_activated<HARDSIGMOID>(sums, rows, vectors, e, row, column, columns);
        case TANH: return finish_activated<TANH>(sums, rows, vectors, e, row, column, columns);
        default: return finish_activated<SIGMOID>(sums, rows, vectors, e, row, column, columns);
    }
}

}  // namespace inc
