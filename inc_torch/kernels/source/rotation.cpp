// Rotary position embedding.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

// Both halves are read before either is written: input and output may be the same memory.
INLINE void rotate_row(const float* input, const float* cosine, const float* sine, float* output, int64_t half) {
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = lanes(half - i);
        const __m512 first = load_float(input + i, mask), second = load_float(input + half + i, mask);
        const __m512 low = _mm512_mul_ps(second, load_float(sine + i, mask));
        const __m512 high = _mm512_mul_ps(first, load_float(sine + half + i, mask));
        store_float(output + i, _mm512_fmsub_ps(first, load_float(cosine + i, mask), low), mask);
        store_float(output + half + i, _mm512_fmadd_ps(second, load_float(cosine + half + i, mask), high), mask);
    }
}

}  // namespace

void run_rotate(const Rotate& r) {
    const int64_t rows = r.batch * r.heads * r.positions;
    parallel(rows, rows * r.half, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const int64_t position = row % r.positions, head = row / r.positions % r.heads;
            const int64_t batch = row / (r.positions * r.heads);
            auto at = [&](const int64_t* strides) {
                return batch * strides[0] + head * strides[1] + position * strides[2];
            };
            rotate_row(r.input + at(r.input_strides), r.cosine + at(r.cosine_strides), r.sine + at(r.sine_strides),
                       r.output + at(r.output_strides), r.half);
        }
    });
}

}  // namespace inc
