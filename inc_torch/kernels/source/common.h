// What all kernels share: number formats, vector arithmetic, activations, threads.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define INLINE static inline __attribute__((always_inline))

namespace inc {

enum Type : int32_t { NOTHING = 0, FLOAT32 = 1, BFLOAT16 = 2, UINT8 = 3 };

enum Activation : int32_t {
    NONE = 0,
    CLAMP = 1,  // between `low` and `high`: relu, relu6, hardtanh
    GELU = 2,
    GELU_TANH = 3,
    SILU = 4,
    HARDSWISH = 5,
    HARDSIGMOID = 6,
    TANH = 7,
    SIGMOID = 8,
};

// 2**23: above it float32 values lie 1 apart, so adding it rounds half to even and leaves the integer in the low bits.
constexpr float MANTISSA = 8388608.0f;

INLINE int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

INLINE __mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

INLINE __mmask64 bytes(int64_t count) { return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }

// ------------------------------------------------------------------------------------------------------ load, store

INLINE __m512 widen_bfloat16(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

INLINE __m256i narrow_bfloat16(__m512 values) {
    __m512i bits = _mm512_castps_si512(values);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}

INLINE __m512 load_float(const float* from, __mmask16 mask) {
    return mask == 0xffff ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask, from);
}

INLINE __m512 load_bfloat16(const uint16_t* from, __mmask16 mask) {
    return widen_bfloat16(mask == 0xffff ? _mm256_loadu_si256((const __m256i*)from)
                                         : _mm256_maskz_loadu_epi16(mask, from));
}

// Codes as float32 numbers.
INLINE __m512 load_codes(const uint8_t* from, __mmask16 mask) {
    __m128i codes = mask == 0xffff ? _mm_loadu_si128((const __m128i*)from) : _mm_maskz_loadu_epi8(mask, from);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
}

INLINE void store_float(float* to, __m512 values, __mmask16 mask) {
    if (mask == 0xffff) _mm512_storeu_ps(to, values);
    else _mm512_mask_storeu_ps(to, mask, values);
}

INLINE void store_bfloat16(uint16_t* to, __m512 values, __mmask16 mask) {
    if (mask == 0xffff) _mm256_storeu_si256((__m256i*)to, narrow_bfloat16(values));
    else _mm256_mask_storeu_epi16(to, mask, narrow_bfloat16(values));
}

INLINE void store_bytes(uint8_t* to, __m512i codes, __mmask16 mask) {
    if (mask == 0xffff) _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(codes));
    else _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(codes));
}

// Any of the three types; `type` is a constant where speed matters.
INLINE __m512 load_any(const void* from, int64_t index, int32_t type, float scale, float zero, __mmask16 mask) {
    if (type == FLOAT32) return load_float((const float*)from + index, mask);
    if (type == BFLOAT16) return load_bfloat16((const uint16_t*)from + index, mask);
    __m512 codes = load_codes((const uint8_t*)from + index, mask);
    return _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
}

// Codes of values, in the low byte of each lane: round half to even, saturate, as `inc_torch.quantizers._codes.encode`.
// A NaN passes through max and min (it is the second operand), and its low byte is the code.
INLINE __m512i encode(__m512 values, float inverse, float shift, float low = MANTISSA, float high = MANTISSA + 255) {
    __m512 shifted = _mm512_fmadd_ps(values, _mm512_set1_ps(inverse), _mm512_set1_ps(shift));
    shifted = _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), shifted));
    return _mm512_castps_si512(shifted);
}

INLINE void store_any(void* to, int64_t index, int32_t type, __m512 values, float inverse, float shift, __mmask16 mask) {
    if (type == FLOAT32) store_float((float*)to + index, values, mask);
    else if (type == BFLOAT16) store_bfloat16((uint16_t*)to + index, values, mask);
    else store_bytes((uint8_t*)to + index, encode(values, inverse, shift), mask);
}

INLINE int64_t size_of(int32_t type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

// ------------------------------------------------------------------------------------------------------ functions

// exp, relative error below 2e-7; 0 for what underflows, NaN for NaN.
INLINE __m512 exp(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3981999507e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(8.3334519073e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(4.1665795894e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.6666665459e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(_mm512_mul_ps(sum, rest), rest, _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(sum, power);
}

INLINE __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

INLINE __m512 tanh(__m512 x) {
    const __m512 two = _mm512_set1_ps(2.0f);
    return _mm512_fmsub_ps(two, sigmoid(_mm512_mul_ps(two, x)), _mm512_set1_ps(1.0f));
}

// gelu(x) = max(x, 0) - t(|x|) with t(u) = u * (1 - cdf(u)), a small bump that is gone at u = 5.6. It is a cubic in each
// of 32 pieces, whose coefficients are looked up in registers: absolute error below 1e-6.
struct Bump {
    static constexpr float RANGE = 5.6f;
    static constexpr float PIECES_PER_UNIT = 31.0f / RANGE;
    alignas(64) float coefficients[4][32];
};

extern const Bump bumps[2];  // GELU, GELU_TANH

INLINE __m512 minus_bump(__m512 x, const Bump& bump) {
    const __m512 magic = _mm512_set1_ps(MANTISSA);
    __m512 magnitude = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(Bump::RANGE));
    __m512 shifted = _mm512_fmadd_ps(magnitude, _mm512_set1_ps(Bump::PIECES_PER_UNIT), magic);
    __m512 rest = _mm512_fmsub_ps(magnitude, _mm512_set1_ps(Bump::PIECES_PER_UNIT), _mm512_sub_ps(shifted, magic));
    __m512i piece = _mm512_castps_si512(shifted);
    auto pick = [&](int power) {
        const float* table = bump.coefficients[power];
        return _mm512_permutex2var_ps(_mm512_load_ps(table), piece, _mm512_load_ps(table + 16));
    };
    __m512 sum = _mm512_fmadd_ps(pick(3), rest, pick(2));
    sum = _mm512_fmadd_ps(sum, rest, pick(1));
    sum = _mm512_fmadd_ps(sum, rest, pick(0));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), sum);
}

INLINE __m512 clamp(__m512 x, float low, float high) {
    return _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x));
}

INLINE __m512 activate(__m512 x, int32_t activation, float low, float high) {
    switch (activation) {
        case CLAMP: return clamp(x, low, high);
        case GELU: return minus_bump(x, bumps[0]);
        case GELU_TANH: return minus_bump(x, bumps[1]);
        case SILU: return _mm512_mul_ps(x, sigmoid(x));
        case HARDSIGMOID:
        case HARDSWISH: {
            __m512 gate = clamp(_mm512_fmadd_ps(x, _mm512_set1_ps(1.0f / 6), _mm512_set1_ps(0.5f)), 0.0f, 1.0f);
            return activation == HARDSWISH ? _mm512_mul_ps(x, gate) : gate;
        }
        case TANH: return tanh(x);
        case SIGMOID: return sigmoid(x);
        default: return x;
    }
}

// ------------------------------------------------------------------------------------------------------ threads

constexpr int64_t SMALL_WORK = 1 << 15;  // of about a nanosecond for each 16: below it a second thread costs more

// Calls work(first, last) on pieces of [0, count), one for each thread; without threads where there is little to do.
template <typename Work>
INLINE void parallel(int64_t count, int64_t cost_of_all, const Work& work) {
    int64_t threads = cost_of_all < SMALL_WORK ? 1 : std::min<int64_t>(omp_get_max_threads(), count);
    if (threads <= 1 || omp_in_parallel()) {
        work(int64_t(0), count);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t first = count * mine / all, last = count * (mine + 1) / all;
        if (first < last) work(first, last);
    }
}

}  // namespace inc
