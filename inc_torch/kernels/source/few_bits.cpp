// Weights of few bits, packed into words of 32: products with them, and the weights as floats.
//
// Codes are taken out 16 at a time: their words are brought into the lanes by a permutation and shifted. Where they lie
// repeats after at most five times 16, so it is looked up. So are the values of codes of up to 4 bits; those of more are
// put below the bits of 2**23, where an integer is a float.

#include <vector>

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

constexpr int64_t LONGEST_PERIOD = 5;

// Of 16 codes in a row, the first of which has a number divisible by 16: which words they are in, and where.
struct Places {
    int64_t in_word, period, words_of_period;
    int64_t first_word[LONGEST_PERIOD];
    alignas(64) int32_t word[LONGEST_PERIOD][16], shift[LONGEST_PERIOD][16];

    explicit Places(int64_t bits) : in_word(32 / bits), period(1) {
        while (period * 16 % in_word) ++period;
        words_of_period = period * 16 / in_word;
        for (int64_t t = 0; t < period; ++t) {
            first_word[t] = t * 16 / in_word;
            for (int64_t lane = 0; lane < 16; ++lane) {
                const int64_t code = t * 16 + lane;
                word[t][lane] = int32_t(code / in_word - first_word[t]);
                shift[t][lane] = int32_t(code % in_word * bits);
            }
        }
    }
};

// Where in a row the next 16 codes are.
struct Cursor {
    const int32_t* words;
    const int32_t* end;
    int64_t turn = 0;  // of the period
};

// Codes of rows. WORDS: how many words 16 codes are in, 1, 2 or 4; 0 where they lie otherwise from one 16 to the next.
template <int WORDS>
struct Codes {
    const Places& places;
    const int64_t words;
    const __m512i word, shift;
    __m512i turned;  // the shifts of `scattered`

    Codes(const Places& places, int64_t count, int64_t bits)
        : places(places), words(ceil_div(count, places.in_word)), word(_mm512_load_si512(places.word[0])),
          shift(_mm512_load_si512(places.shift[0])) {
        alignas(64) int32_t shifts[16];
        for (int32_t lane = 0; lane < 16; ++lane) shifts[lane] = int32_t((WORDS ? lane / WORDS : 0) * bits);
        turned = _mm512_load_si512(shifts);
    }

    // Before the first code of a row.
    Cursor start(const int32_t* row) const { return {row, row + words}; }

    // The next 16 codes in the low bits of the lanes, with others above them; those behind the end of the row mean
    // nothing.
    INLINE __m512i next(const Codes& self, Cursor& cursor) {
        const Places& p = self.places;
        const int32_t* from = cursor.words + (WORDS ? 0 : p.first_word[cursor.turn]);
        const int64_t left = std::min<int64_t>(cursor.end - from, 8);
        const __m256i near = _mm256_maskz_loadu_epi32(__mmask8((1u << left) - 1), from);
        const __m512i word = WORDS ? self.word : _mm512_load_si512(p.word[cursor.turn]);
        const __m512i shift = WORDS ? self.shift : _mm512_load_si512(p.shift[cursor.turn]);
        if (WORDS) cursor.words += WORDS;
        else if (++cursor.turn == p.period) cursor.turn = 0, cursor.words += p.words_of_period;
        return _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, _mm512_castsi256_si512(near)), shift);
    }

    // The next 16 codes in the order of `arrange`: words go to all lanes, which takes no permutation. ALL: they are there.
    template <bool ALL>
    INLINE __m512i scattered(const Codes& self, Cursor& cursor) {
        if (!WORDS) return next(self, cursor);
        const int32_t* from = cursor.words;
        cursor.words += WORDS;
        if (WORDS == 1) return _mm512_srlv_epi32(_mm512_set1_epi32(*from), self.turned);
        const int64_t left = std::min<int64_t>(cursor.end - from, 4);
        const __m128i near = !ALL          ? _mm_maskz_loadu_epi32(__mmask8((1u << left) - 1), from)
                             : WORDS == 4 ? _mm_loadu_si128((const __m128i*)from)
                                          : _mm_loadl_epi64((const __m128i*)from);
        const __m512i spread = WORDS == 2 ? _mm512_broadcastq_epi64(near) : _mm512_broadcast_i32x4(near);
        return _mm512_srlv_epi32(spread, self.turned);
    }

    // Inputs in the order of `scattered`, 16 by 16, with zeros behind the end.
    static void arrange(const Places& p, const float* from, int64_t count, float* to) {
        alignas(64) int32_t order[16];
        for (int32_t lane = 0; lane < 16; ++lane)
            order[lane] = WORDS ? lane % WORDS * int32_t(p.in_word) + lane / WORDS : lane;
        const __m512i index = _mm512_load_si512(order);
        for (int64_t i = 0; i < count; i += 16)
            _mm512_storeu_ps(to + i, _mm512_permutexvar_ps(index, load_float(from + i, lanes(count - i))));
    }
};

// What codes stand for, less a zero point: `prepared` for it once, `of` many codes. TABLE: codes of up to 4 bits.
template <bool TABLE>
struct Values {
    __m512 table;
    __m512i mask, above;

    explicit Values(const FewBits& f) {
        const int32_t count = 1 << f.bits, sign = f.zeros || f.table ? 0 : count / 2;
        alignas(64) float entries[16];
        for (int32_t i = 0; i < 16; ++i)  // whatever lies above a code, 4 bits of it choose the same entry
            entries[i] = TABLE && f.table ? f.table[i % count] : float((i % count ^ sign) - sign);
        table = _mm512_load_ps(entries);
        mask = _mm512_set1_epi32(count - 1);
        above = _mm512_set1_epi32(0x4b000000 | sign);  // the sign bit of two's complement is turned over
    }

    // A zero point as `prepared` takes it.
    static float zero(const FewBits& f, float zero) {
        return TABLE ? zero : MANTISSA + (f.zeros ? zero : float(1 << (f.bits - 1)));
    }

    INLINE __m512 prepared(const Values& self, __m512 zero) { return TABLE ? _mm512_sub_ps(self.table, zero) : zero; }

    INLINE __m512 of(const Values& self, __m512i codes, __m512 prepared) {
        if (TABLE) return _mm512_permutexvar_ps(codes, prepared);
        const __m512i bits = _mm512_ternarylogic_epi32(codes, self.mask, self.above, 0x6a);  // (a & b) ^ c
        return _mm512_sub_ps(_mm512_castsi512_ps(bits), prepared);
    }
};

// One output's weights: the words, and of each group the scale and the zero point.
struct Row {
    const int32_t* words;
    const float* scales;
    const float* zeros;
    int64_t output;
};

template <int WORDS, bool TABLE>
struct Kernel {
    using C = Codes<WORDS>;
    using V = Values<TABLE>;

    // Calls work(first input, mask, 16 weights) for all inputs of a row.
    template <typename Work>
    INLINE void each_weight(const FewBits& f, const C& codes, const V& values, const Row& row, const Work& work) {
        const bool even = is_even(f);
        Cursor cursor = codes.start(row.words);
        for (int64_t input = 0; input < f.inputs; input += 16) {
            const __mmask16 mask = lanes(f.inputs - input);
            const __m512i code = C::next(codes, cursor);
            if (even) {
                const uint64_t group = uint64_t(input) / uint64_t(f.group);
                const __m512 value = V::of(values, code, V::prepared(values, _mm512_set1_ps(row.zeros[group])));
                work(input, mask, _mm512_mul_ps(value, _mm512_set1_ps(row.scales[group])));
                continue;
            }
            alignas(64) int32_t groups[16] = {0};  // 16 inputs may have as many
            for (int64_t lane = 0; lane < 16 && input + lane < f.inputs; ++lane)
                groups[lane] = f.group_of ? f.group_of[input + lane] : int32_t((input + lane) / f.group);
            const __m512i index = _mm512_load_si512(groups);
            const __m512 nothing = _mm512_setzero_ps();
            const __m512 zero = _mm512_mask_i32gather_ps(nothing, mask, index, row.zeros, 4);
            const __m512 scale = _mm512_mask_i32gather_ps(nothing, mask, index, row.scales, 4);
            const __m512 value = TABLE ? _mm512_sub_ps(_mm512_permutexvar_ps(code, values.table), zero)
                                       : V::of(values, code, zero);
            work(input, mask, _mm512_mul_ps(value, scale));
        }
    }

    // Whether 16 inputs in a row share a scale.
    static bool is_even(const FewBits& f) { return !f.group_of && f.group % 16 == 0; }

    // ROWS rows of arranged inputs with one output: sums of what shares a scale are multiplied with it.
    template <int ROWS>
    INLINE void multiply_even(const FewBits& f, const C& given, const V& values, const Row& row, const float* input,
                              int64_t stride, __m512* totals) {
        const C codes = given;  // in registers
        Cursor cursor = codes.start(row.words);
        const int64_t inputs = f.inputs, length = f.group;
        for (int64_t first = 0, group = 0; first < inputs; first += length, ++group) {
            const int64_t last = std::min(inputs, first + length);
            const __m512 prepared = V::prepared(values, _mm512_set1_ps(row.zeros[group]));
            __m512 sums[ROWS];
            for (int m = 0; m < ROWS; ++m) sums[m] = _mm512_setzero_ps();
            int64_t i = first;
            for (; i + 16 <= last; i += 16) {
                const __m512 value = V::of(values, C::template scattered<true>(codes, cursor), prepared);
                for (int m = 0; m < ROWS; ++m)
                    sums[m] = _mm512_fmadd_ps(value, _mm512_loadu_ps(input + m * stride + i), sums[m]);
            }
            if (i < last) {
                const __m512 value = V::of(values, C::template scattered<false>(codes, cursor), prepared);
                for (int m = 0; m < ROWS; ++m)
                    sums[m] = _mm512_fmadd_ps(value, _mm512_loadu_ps(input + m * stride + i), sums[m]);
            }
            const __m512 scale = _mm512_set1_ps(row.scales[group]);
            for (int m = 0; m < ROWS; ++m) totals[m] = _mm512_fmadd_ps(sums[m], scale, totals[m]);
        }
    }

    // The same where they may share none, on inputs as they are.
    template <int ROWS>
    INLINE void multiply_uneven(const FewBits& f, const C& codes, const V& values, const Row& row, const float* input,
                                int64_t stride, __m512* totals) {
        each_weight(f, codes, values, row, [&](int64_t i, __mmask16 mask, __m512 weight) {
            for (int m = 0; m < ROWS; ++m)
                totals[m] = _mm512_fmadd_ps(weight, load_float(input + m * stride + i, mask), totals[m]);
        });
    }

    template <int ROWS>
    static void multiply(const FewBits& f, const C& codes, const V& values, const Row& row, const float* inputs,
                         int64_t stride, int64_t first) {
        const float* input = inputs + first * stride;
        __m512 totals[ROWS];
        for (int m = 0; m < ROWS; ++m) totals[m] = _mm512_setzero_ps();
        if (is_even(f)) multiply_even<ROWS>(f, codes, values, row, input, stride, totals);
        else multiply_uneven<ROWS>(f, codes, values, row, input, stride, totals);
        const float bias = f.bias ? f.bias[row.output] : 0.0f;
        for (int m = 0; m < ROWS; ++m)
            ((float*)f.output)[(first + m) * f.output_stride + row.output] = _mm512_reduce_add_ps(totals[m]) + bias;
    }

    // Calls work(codes, values, row) for each output.
    template <typename Work>
    static void each_row(const FewBits& f, const Work& work) {
        const Places places(f.bits);
        parallel(f.outputs, f.outputs * f.inputs, [&](int64_t first, int64_t last) {
            const C codes(places, f.inputs, f.bits), of_zeros(places, f.groups, f.bits);
            const V values(f);
            const __m512i mask = _mm512_set1_epi32((1 << f.bits) - 1);
            std::vector<float> zeros(f.groups, V::zero(f, 0.0f));
            for (int64_t output = first; output < last; ++output) {
                Cursor cursor = of_zeros.start(f.zeros + (f.zeros ? output * of_zeros.words : 0));
                for (int64_t group = 0; f.zeros && group < f.groups; group += 16) {
                    const __m512i code = C::next(of_zeros, cursor);
                    const __m512 zero = _mm512_cvtepi32_ps(_mm512_and_si512(code, mask));
                    store_float(zeros.data() + group, _mm512_add_ps(zero, _mm512_set1_ps(V::zero(f, 0.0f))),
                                lanes(f.groups - group));
                }
                const int32_t* words = f.words + output * codes.words;
                work(codes, values, Row{words, f.scales + output * f.groups, zeros.data(), output});
            }
        });
    }

    static void product(const FewBits& f) {
        const Places places(f.bits);
        const float* inputs = f.input;
        int64_t stride = f.input_stride;
        std::vector<float> arranged;
        if (is_even(f)) {
            stride = ceil_div(f.inputs, 16) * 16;
            arranged.resize(f.rows * stride);
            for (int64_t m = 0; m < f.rows; ++m)
                C::arrange(places, f.input + m * f.input_stride, f.inputs, arranged.data() + m * stride);
            inputs = arranged.data();
        }
        each_row(f, [&](const C& codes, const V& values, const Row& row) {
            int64_t m = 0;
            for (; m + 8 <= f.rows; m += 8) multiply<8>(f, codes, values, row, inputs, stride, m);
            if (m + 4 <= f.rows) multiply<4>(f, codes, values, row, inputs, stride, m), m += 4;
            if (m + 2 <= f.rows) multiply<2>(f, codes, values, row, inputs, stride, m), m += 2;
            if (m < f.rows) multiply<1>(f, codes, values, row, inputs, stride, m);
        });
    }

    static void expand(const FewBits& f) {
        each_row(f, [&](const C& codes, const V& values, const Row& row) {
            const int64_t start = row.output * f.output_stride;
            each_weight(f, codes, values, row, [&](int64_t i, __mmask16 mask, __m512 weight) {
                if (f.output_type == BFLOAT16) store_bfloat16((uint16_t*)f.output + start + i, weight, mask);
                else store_float((float*)f.output + start + i, weight, mask);
            });
        });
    }

    static void run(const FewBits& f) { f.operation == FEW_BITS_PRODUCT ? product(f) : expand(f); }
};

}  // namespace

void run_few_bits(const FewBits& f) {
    switch (f.bits) {
        case 2: return Kernel<1, true>::run(f);
        case 3: return Kernel<0, true>::run(f);
        case 4: return Kernel<2, true>::run(f);
        case 5:
        case 6: return Kernel<0, false>::run(f);
        default: return Kernel<4, false>::run(f);  // 7 and 8: 4 codes in a word
    }
}

}  // namespace inc
