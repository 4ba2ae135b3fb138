// Statistics of rows: layer norm, root mean square norm, the range of a whole tensor.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

constexpr float SMALLEST_SCALE = 1e-30f;
constexpr int64_t LONGEST_ROW = 16384;

float usable_scale(double scale) {
    const float rounded = float(scale);
    return rounded >= SMALLEST_SCALE ? rounded : 1.0f;
}

// One row: the mean, then the spread around it, then the output; the sum with the residual is kept in `row`.
void normalize(const LayerNorm& n, int64_t index, float* row) {
    const float* input = n.input + index * n.input_stride;
    const float* values = input;
    const int64_t count = n.columns, whole = count / 16 * 16;
    const __mmask16 tail = lanes(count - whole);
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    auto each = [&](auto&& function) {
        int64_t i = 0;
        for (; i + 64 <= whole; i += 64) {
            function(i, 0xffff, 0), function(i + 16, 0xffff, 1);
            function(i + 32, 0xffff, 2), function(i + 48, 0xffff, 3);
        }
        for (; i < whole; i += 16) function(i, 0xffff, 0);
        if (tail) function(i, tail, 0);
    };
    auto total = [&] {
        return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
    };
    if (n.residual) {
        const float* residual = n.residual + index * n.residual_stride;
        each([&](int64_t i, __mmask16 mask, int which) {
            __m512 x = _mm512_add_ps(load_float(input + i, mask), load_float(residual + i, mask));
            store_float(row + i, x, mask);
            sums[which] = _mm512_add_ps(sums[which], x);
        });
        values = row;
    } else if (!n.root_mean_square) {
        each([&](int64_t i, __mmask16 mask, int which) {
            sums[which] = _mm512_add_ps(sums[which], load_float(input + i, mask));
        });
    }
    const float mean = n.root_mean_square ? 0.0f : total() / float(count);
    const __m512 middle = _mm512_set1_ps(mean);
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    each([&](int64_t i, __mmask16 mask, int which) {
        __m512 x = _mm512_maskz_sub_ps(mask, load_float(values + i, mask), middle);
        sums[which] = _mm512_fmadd_ps(x, x, sums[which]);
    });
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(total() / float(count) + n.epsilon));
    float* output = n.output ? n.output + index * n.output_stride : nullptr;
    uint8_t* codes = n.codes ? n.codes + index * n.codes_stride : nullptr;
    each([&](int64_t i, __mmask16 mask, int) {
        __m512 y = _mm512_mul_ps(_mm512_sub_ps(load_float(values + i, mask), middle), factor);
        if (n.weight) y = _mm512_mul_ps(y, load_float(n.weight + i, mask));
        if (n.bias) y = _mm512_add_ps(y, load_float(n.bias + i, mask));
        if (output) store_float(output + i, y, mask);
        if (codes) store_bytes(codes + i, encode(y, n.inverse, n.shift), mask);
    });
}

}  // namespace

void run_layer_norm(const LayerNorm& n) {
    parallel(n.rows, n.rows * n.columns * 2, [&](int64_t first, int64_t last) {
        alignas(64) float near[LONGEST_ROW];
        float* row = near;
        if (n.residual && n.columns > LONGEST_ROW) row = new float[n.columns];
        for (int64_t index = first; index < last; ++index) normalize(n, index, row);
        if (row != near) delete[] row;
    });
}

void run_dynamic_range(const DynamicRange& d) {
    constexpr int64_t MOST = 256;
    const int64_t pieces = std::min<int64_t>({MOST, d.rows, int64_t(omp_get_max_threads())});
    float lows[MOST], highs[MOST];
    bool broken[MOST];
    parallel(pieces, d.rows * d.columns / 2, [&](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece) {
            __m512 low = _mm512_setzero_ps(), high = low, nothing = low;
            for (int64_t row = d.rows * piece / pieces; row < d.rows * (piece + 1) / pieces; ++row)
                for (int64_t i = 0; i < d.columns; i += 16) {
                    __m512 x = load_float(d.input + row * d.stride + i, lanes(d.columns - i));
                    low = _mm512_min_ps(x, low);
                    high = _mm512_max_ps(x, high);
                    nothing = _mm512_fmadd_ps(x, _mm512_setzero_ps(), nothing);  // NaN from NaN and from infinity
                }
            lows[piece] = _mm512_reduce_min_ps(low);
            highs[piece] = _mm512_reduce_max_ps(high);
            broken[piece] = _mm512_reduce_add_ps(nothing) != 0;
        }
    });
    double low = 0, high = 0;
    bool finite = true;
    for (int64_t piece = 0; piece < pieces; ++piece) {
        low = std::min(low, double(lows[piece]));
        high = std::max(high, double(highs[piece]));
        finite = finite && !broken[piece];
    }
    if (!finite) {
        d.result[0] = std::numeric_limits<float>::quiet_NaN();
        d.result[1] = 0;
    } else if (d.symmetric) {
        d.result[0] = usable_scale(std::max(-low, high) / 127.5);
        d.result[1] = 128;
    } else {
        const float scale = usable_scale(high / 255 - low / 255);
        d.result[0] = scale;
        d.result[1] = float(std::min(std::max(std::nearbyint(-low / double(scale)), 0.0), 255.0));
    }
}

}  // namespace inc
