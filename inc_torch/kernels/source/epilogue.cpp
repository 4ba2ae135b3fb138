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

void finish_tile(const int32_t* sums, int64_t rows, int64_t vectors, const Epilogue& e, int64_t row, int64_t column,
                 int64_t columns) {
    switch (e.activation) {
        case NONE: return finish_rows<NONE>(sums, rows, vectors, e, row, column, columns);
        case CLAMP: return finish_rows<CLAMP>(sums, rows, vectors, e, row, column, columns);
        case GELU: return finish_rows<GELU>(sums, rows, vectors, e, row, column, columns);
        case GELU_TANH: return finish_rows<GELU_TANH>(sums, rows, vectors, e, row, column, columns);
        case SILU: return finish_rows<SILU>(sums, rows, vectors, e, row, column, columns);
        case HARDSWISH: return finish_rows<HARDSWISH>(sums, rows, vectors, e, row, column, columns);
        case HARDSIGMOID: return finish_rows<HARDSIGMOID>(sums, rows, vectors, e, row, column, columns);
        case TANH: return finish_rows<TANH>(sums, rows, vectors, e, row, column, columns);
        default: return finish_rows<SIGMOID>(sums, rows, vectors, e, row, column, columns);
    }
}

}  // namespace inc
