// softmax(query key' * scale + mask) value, for any number of heads. Products are in bfloat16 with float32 sums.
//
// Keys and values of a head are packed once, so that two neighbours along the summed dimension lie in one 32-bit lane.
// Then six queries at a time go from scores to outputs, or sixteen on tiles; one or two are computed from the keys and
// values in place.

#include <vector>

#include "arguments.h"
#include "common.h"
#include "tiles.h"

namespace inc {

namespace {

constexpr float LOG2E = 1.44269504088896341f;
constexpr int64_t ROWS = 6;
constexpr int64_t FEW_QUERIES = 2;
constexpr int64_t QUERIES_OF_TILES = 8;  // with fewer, tiles are mostly empty
constexpr int64_t KEYS_AHEAD = 32;  // how far keys and values that are read once are brought into the cache

// 32 values as bfloat16 pairs, zero beyond `count`.
INLINE __m512i pairs(const void* from, int64_t index, int32_t type, int64_t count) {
    if (type == BFLOAT16) {
        const __mmask32 mask = count >= 32 ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
        return _mm512_maskz_loadu_epi16(mask, (const uint16_t*)from + index);
    }
    __m512 low = load_float((const float*)from + index, lanes(count));
    __m512 high = _mm512_setzero_ps();
    if (count > 16) high = load_float((const float*)from + index + 16, lanes(count - 16));
#ifdef __AVX512BF16__
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow_bfloat16(low)), narrow_bfloat16(high), 1);
#endif
}

INLINE __m512 multiply_pairs(__m512 sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    const __m512i upper = _mm512_set1_epi32(int32_t(0xffff0000u));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)),
                          sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, upper)),
                           _mm512_castsi512_ps(_mm512_and_si512(b, upper)), sum);
#endif
}

INLINE void transpose(__m512i (&m)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        m[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        m[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        m[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        m[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        m[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        m[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

struct Sizes {
    int64_t keys, size_pairs, value_columns;  // padded: keys to 64, pairs to 16, columns to 64
    explicit Sizes(const Attention& a)
        : keys(ceil_div(a.keys, 64) * 64),
          size_pairs(ceil_div(a.size, 32) * 16),
          value_columns(ceil_div(a.value_size, 64) * 64) {}
};

// Keys to [pair of dimensions][key].
void pack_keys(const Attention& a, const Sizes& sizes, int64_t origin, uint32_t* packed) {
    for (int64_t key = 0; key < sizes.keys; key += 16)
        for (int64_t pair = 0; pair < sizes.size_pairs; pair += 16) {
            __m512i block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i)
                block[i] = key + i < a.keys ? pairs(a.key, origin + (key + i) * a.key_strides[2] + 2 * pair, a.key_type,
                                                    a.size - 2 * pair)
                                            : _mm512_setzero_si512();
            transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) _mm512_store_si512(packed + (pair + i) * sizes.keys + key, block[i]);
        }
}

// Values to [pair of keys][column].
void pack_values(const Attention& a, const Sizes& sizes, int64_t origin, uint32_t* packed) {
    const __m512i low_order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                               37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_order = _mm512_add_epi16(low_order, _mm512_set1_epi16(16));
    for (int64_t key = 0; key < sizes.keys; key += 2)
        for (int64_t column = 0; column < sizes.value_columns; column += 32) {
            __m512i even = _mm512_setzero_si512(), odd = even;
            const int64_t index = origin + key * a.value_strides[2] + column, left = a.value_size - column;
            if (key < a.keys && left > 0) even = pairs(a.value, index, a.value_type, left);
            if (key + 1 < a.keys && left > 0) odd = pairs(a.value, index + a.value_strides[2], a.value_type, left);
            uint32_t* to = packed + key / 2 * sizes.value_columns + column;
            _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low_order, odd));
            _mm512_store_si512(to + 16, _mm512_permutex2var_epi16(even, high_order, odd));
        }
}

// result[row][0..64) = sum over pairs of left[row][pair] * right[pair][0..64)
template <int COUNT>
INLINE void multiply_tile(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride,
                          int64_t count, __m512 (&sums)[COUNT][4]) {
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[r][v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; ++i, right += right_stride) {
        __m512i columns[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) columns[v] = _mm512_load_si512(right + 16 * v);
#pragma GCC unroll 6
        for (int r = 0; r < COUNT; ++r) {
            const __m512i row = _mm512_set1_epi32(int32_t(left[r * left_stride + i]));
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sums[r][v] = multiply_pairs(sums[r][v], row, columns[v]);
        }
    }
}

INLINE __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-160.0f), x);
    const __m512 power = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, power);
    __m512 sum = _mm512_set1_ps(1.3398874e-3f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.6184373e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.5503324e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.4022648e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.9314720e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, power);
}

INLINE __m512 mask_of(const Attention& a, int64_t index, int64_t key, __m512 scores, __mmask16 mask) {
    const int64_t stride = a.mask_strides[3];
    const __m512 minus_infinity = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    if (a.mask_type == FLOAT32) {
        const float* from = (const float*)a.mask + index;
        __m512 added = stride ? load_float(from + key, mask) : _mm512_set1_ps(*from);
        return _mm512_fmadd_ps(added, _mm512_set1_ps(LOG2E), scores);
    }
    const uint8_t* from = (const uint8_t*)a.mask + index;
    const __m128i kept = stride ? _mm_maskz_loadu_epi8(mask, from + key) : _mm_set1_epi8(char(*from));
    return _mm512_mask_mov_ps(minus_infinity, _mm_test_epi8_mask(kept, kept), scores);
}

// Scores (in units of log 2) to weights that sum to the returned value; `visible` keys, zero up to `padded`.
template <typename Store>
INLINE float weigh(const Attention& a, float* scores, int64_t visible, int64_t padded, int64_t mask_index,
                   const Store& store) {
    const __m512 minus_infinity = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 factor = _mm512_set1_ps(a.scale * LOG2E);
    __m512 greatest = minus_infinity;
    if (!a.mask_type && visible == padded && a.scale > 0) {  // scores need no pass of their own
        for (int64_t key = 0; key < padded; key += 16) greatest = _mm512_max_ps(greatest, _mm512_load_ps(scores + key));
        const __m512 highest = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(greatest)), factor);
        __m512 total = _mm512_setzero_ps();
        for (int64_t key = 0; key < padded; key += 16) {
            __m512 weight = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + key), factor, highest));
            total = _mm512_add_ps(total, weight);
            store(key, weight);
        }
        return _mm512_reduce_add_ps(total);
    }
    for (int64_t key = 0; key < padded; key += 16) {
        const __mmask16 mask = lanes(visible - key);
        __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + key), factor);
        if (a.mask_type) score = mask_of(a, mask_index, key, score, mask);
        score = _mm512_mask_mov_ps(minus_infinity, mask, score);
        _mm512_store_ps(scores + key, score);
        greatest = _mm512_max_ps(greatest, score);  // the second operand wins if it is NaN
    }
    float top = _mm512_reduce_max_ps(greatest);
    if (top == -std::numeric_limits<float>::infinity()) top = 0;  // nothing to see: all weights are 0
    const __m512 highest = _mm512_set1_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int64_t key = 0; key < padded; key += 16) {
        __m512 weight = exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + key), highest));
        total = _mm512_add_ps(total, weight);
        store(key, weight);
    }
    return _mm512_reduce_add_ps(total);
}

INLINE int64_t visible_keys(const Attention& a, int64_t query) {
    return a.causal ? std::min(a.keys, query + 1) : a.keys;
}

INLINE void write(const Attention& a, int64_t index, __m512 values, __mmask16 mask) {
    store_any(a.output, index, a.output_type, values, a.inverse, a.shift, mask);
}

struct Memory {
    std::vector<char> room;
    char* next = nullptr;
    template <typename T>
    T* take(int64_t count) {
        T* begin = (T*)next;
        next += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
        return begin;
    }
    void reserve(int64_t size) {
        if (int64_t(room.size()) < size + 64) room.resize(size + 64);
        next = (char*)((uintptr_t(room.data()) + 63) / 64 * 64);
    }
};

thread_local Memory memory;

struct Work {
    uint32_t *keys, *values, *queries;
    float* scores;
    uint16_t* weights;
};

INLINE void pack_query(const Attention& a, const Sizes& sizes, int64_t origin, uint32_t* packed) {
    for (int64_t pair = 0; pair < sizes.size_pairs; pair += 16)
        _mm512_store_si512(packed + pair, pairs(a.query, origin + 2 * pair, a.query_type, a.size - 2 * pair));
}

// The weights of one query in bfloat16; returns their sum.
INLINE float weigh_in_bfloat16(const Attention& a, const Sizes& sizes, const Work& work, int64_t batch, int64_t head,
                               int64_t query, int64_t row, int64_t padded) {
    const int64_t mask_index = batch * a.mask_strides[0] + head * a.mask_strides[1] + query * a.mask_strides[2];
    uint16_t* weights = work.weights + row * sizes.keys;
    return weigh(a, work.scores + row * sizes.keys, visible_keys(a, query), padded, mask_index,
                 [&](int64_t key, __m512 weight) {
#ifdef __AVX512BF16__
                     _mm256_store_si256((__m256i*)(weights + key), (__m256i)_mm512_cvtneps_pbh(weight));
#else
                     _mm256_store_si256((__m256i*)(weights + key), narrow_bfloat16(weight));
#endif
                 });
}

// 64 columns of the sum of weighted values, divided by the sum of the weights.
INLINE void write_output(const Attention& a, int64_t batch, int64_t head, int64_t query, int64_t column, float total,
                         const __m512 (&sums)[4]) {
    const int64_t origin = batch * a.output_strides[0] + head * a.output_strides[1] + query * a.output_strides[2];
    const __m512 inverse = _mm512_set1_ps(total == 0 ? 0.0f : 1.0f / total);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
        const __mmask16 mask = lanes(a.value_size - column - 16 * v);
        if (mask) write(a, origin + column + 16 * v, _mm512_mul_ps(sums[v], inverse), mask);
    }
}

INLINE int64_t query_origin(const Attention& a, int64_t batch, int64_t head, int64_t query) {
    return batch * a.query_strides[0] + head * a.query_strides[1] + query * a.query_strides[2];
}

template <int COUNT>
__attribute__((noinline)) void attend(const Attention& a, const Sizes& sizes, const Work& work, int64_t batch,
                                      int64_t head, int64_t query) {
    for (int r = 0; r < COUNT; ++r)
        pack_query(a, sizes, query_origin(a, batch, head, query + r), work.queries + r * sizes.size_pairs);
    const int64_t padded = ceil_div(visible_keys(a, query + COUNT - 1), 64) * 64;
    for (int64_t key = 0; key < padded; key += 64) {
        __m512 sums[COUNT][4];
        multiply_tile<COUNT>(work.queries, sizes.size_pairs, work.keys + key, sizes.keys, ceil_div(a.size, 2), sums);
#pragma GCC unroll 6
        for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) _mm512_store_ps(work.scores + r * sizes.keys + key + 16 * v, sums[r][v]);
    }
    float totals[COUNT];
    for (int r = 0; r < COUNT; ++r)
        totals[r] = weigh_in_bfloat16(a, sizes, work, batch, head, query + r, r, padded);
    for (int64_t column = 0; column < a.value_size; column += 64) {
        __m512 sums[COUNT][4];
        multiply_tile<COUNT>((const uint32_t*)work.weights, sizes.keys / 2, work.values + column, sizes.value_columns,
                             padded / 2, sums);
#pragma GCC unroll 6
        for (int r = 0; r < COUNT; ++r) write_output(a, batch, head, query + r, column, totals[r], sums[r]);
    }
}

#ifdef INC_TILES

// result[row][0..64) = sum over pairs of left[row][pair] * right[pair][0..64), for 16 rows; strides in lanes of 32 bits.
INLINE void multiply_on_tiles(const void* left, int64_t left_stride, const uint32_t* right, int64_t right_stride,
                              int64_t count, float* result, int64_t result_stride) {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int64_t i = 0; i < count; i += TILE_ROWS, right += TILE_ROWS * right_stride) {
        load_tile<4>((const uint32_t*)left + i, 4 * left_stride);
        load_tile<5>(right, 4 * right_stride);
        multiply_bfloat16<0, 4, 5>();
        load_tile<6>(right + 16, 4 * right_stride);
        multiply_bfloat16<1, 4, 6>();
        load_tile<7>(right + 32, 4 * right_stride);
        multiply_bfloat16<2, 4, 7>();
        load_tile<5>(right + 48, 4 * right_stride);
        multiply_bfloat16<3, 4, 5>();
    }
    store_tile<0>(result, 4 * result_stride);
    store_tile<1>(result + 16, 4 * result_stride);
    store_tile<2>(result + 32, 4 * result_stride);
    store_tile<3>(result + 48, 4 * result_stride);
}

__attribute__((noinline)) void attend_on_tiles(const Attention& a, const Sizes& sizes, const Work& work, int64_t batch,
                                               int64_t head, int64_t query, int64_t count) {
    for (int64_t r = 0; r < count; ++r)
        pack_query(a, sizes, query_origin(a, batch, head, query + r), work.queries + r * sizes.size_pairs);
    const int64_t padded = ceil_div(visible_keys(a, query + count - 1), 64) * 64;
    for (int64_t key = 0; key < padded; key += 64)
        multiply_on_tiles(work.queries, sizes.size_pairs, work.keys + key, sizes.keys, sizes.size_pairs,
                          work.scores + key, sizes.keys);
    float totals[TILE_ROWS];
    for (int64_t r = 0; r < count; ++r)
        totals[r] = weigh_in_bfloat16(a, sizes, work, batch, head, query + r, r, padded);
    alignas(64) float memory[TILE_ROWS][64];
    for (int64_t column = 0; column < a.value_size; column += 64) {
        multiply_on_tiles(work.weights, sizes.keys / 2, work.values + column, sizes.value_columns, padded / 2,
                          memory[0], 64);
        for (int64_t r = 0; r < count; ++r) {
            const __m512 sums[4] = {_mm512_load_ps(memory[r]), _mm512_load_ps(memory[r] + 16),
                                    _mm512_load_ps(memory[r] + 32), _mm512_load_ps(memory[r] + 48)};
            write_output(a, batch, head, query + r, column, totals[r], sums);
        }
    }
}

#endif

void attend_some_queries(const Attention& a, const Sizes& sizes, const Work& work, int64_t batch, int64_t head,
                         int64_t query, int64_t count) {
    switch (count) {
        case 1: return attend<1>(a, sizes, work, batch, head, query);
        case 2: return attend<2>(a, sizes, work, batch, head, query);
        case 3: return attend<3>(a, sizes, work, batch, head, query);
        case 4: return attend<4>(a, sizes, work, batch, head, query);
        case 5: return attend<5>(a, sizes, work, batch, head, query);
        default: return attend<6>(a, sizes, work, batch, head, query);
    }
}

// All queries of [first, last) of all heads that share the keys of one key head; `rows` of them at a time.
template <typename Attend>
void attend_packed(const Attention& a, int64_t batch, int64_t key_head, int64_t first, int64_t last, int64_t rows,
                   const Attend& attend_rows) {
    const Sizes sizes(a);
    const int64_t key_room = sizes.keys * sizes.size_pairs, value_room = sizes.keys / 2 * sizes.value_columns;
    memory.reserve(4 * (key_room + value_room + rows * sizes.size_pairs) + rows * sizes.keys * 6 + 1024);
    Work work;
    work.keys = memory.take<uint32_t>(key_room);
    work.values = memory.take<uint32_t>(value_room);
    work.queries = memory.take<uint32_t>(rows * sizes.size_pairs);
    work.scores = memory.take<float>(rows * sizes.keys);
    work.weights = memory.take<uint16_t>(rows * sizes.keys);
    pack_keys(a, sizes, batch * a.key_strides[0] + key_head * a.key_strides[1], work.keys);
    pack_values(a, sizes, batch * a.value_strides[0] + key_head * a.value_strides[1], work.values);
    const int64_t group = a.heads / a.key_heads;
    const int64_t tiles = ceil_div(last - first, rows);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t begin = first + (last - first) * tile / tiles;
            attend_rows(a, sizes, work, batch, head, begin, first + (last - first) * (tile + 1) / tiles - begin);
        }
}

template <int TYPE>
INLINE __m512 load_value(const void* from, int64_t index, __mmask16 mask) {
    return TYPE == FLOAT32 ? load_float((const float*)from + index, mask)
                           : load_bfloat16((const uint16_t*)from + index, mask);
}

template <int TYPE>
INLINE void prefetch_value(const void* from, int64_t index) {
    _mm_prefetch((const char*)from + index * size_of(TYPE), _MM_HINT_T0);
}

// The sums of four vectors.
INLINE __m128 sum_each(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(first), _mm512_castps_pd(second))),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(first), _mm512_castps_pd(second))));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// scores[head][key] = query[head] key, for heads that share the keys; four keys at a time.
template <int HEADS, int TYPE>
void score_few(const Attention& a, const float* queries, int64_t origin, int64_t visible, float* scores, int64_t padded) {
    const int64_t vectors = ceil_div(a.size, 16);
    for (int64_t key = 0; key < visible; key += 4) {
        int64_t index[4];
        for (int k = 0; k < 4; ++k) index[k] = origin + std::min(key + k, visible - 1) * a.key_strides[2];
        __m512 sums[HEADS][4];
        for (auto& sums_of_head : sums)
            for (auto& sum : sums_of_head) sum = _mm512_setzero_ps();
        for (int64_t v = 0; v < vectors; ++v) {
            const __mmask16 mask = lanes(a.size - 16 * v);
            __m512 keys[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                keys[k] = load_value<TYPE>(a.key, index[k] + 16 * v, mask);
                prefetch_value<TYPE>(a.key, index[k] + 16 * v + KEYS_AHEAD * a.key_strides[2]);
            }
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) {
                const __m512 query = _mm512_load_ps(queries + (h * vectors + v) * 16);
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) sums[h][k] = _mm512_fmadd_ps(query, keys[k], sums[h][k]);
            }
        }
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
            _mm_store_ps(scores + h * padded + key, sum_each(sums[h][0], sums[h][1], sums[h][2], sums[h][3]));
    }
    for (int h = 0; h < HEADS; ++h) std::fill(scores + h * padded + visible, scores + (h + 1) * padded, 0.0f);
}

// output[head] = sum over keys of weight[head][key] * value[key], divided by the head's total; 64 columns at a time.
template <int HEADS, int TYPE>
void mix_few(const Attention& a, const float* weights, int64_t padded, const float* totals, int64_t origin,
             int64_t visible, int64_t to) {
    for (int64_t begin = 0; begin < a.value_size; begin += 64) {
        __mmask16 masks[4];
        for (int v = 0; v < 4; ++v) masks[v] = lanes(a.value_size - begin - 16 * v);
        __m512 sums[HEADS][4];
        for (auto& sums_of_head : sums)
            for (auto& sum : sums_of_head) sum = _mm512_setzero_ps();
        for (int64_t key = 0; key < visible; ++key) {
            const int64_t index = origin + key * a.value_strides[2] + begin;
            __m512 values[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                values[v] = load_value<TYPE>(a.value, index + 16 * v, masks[v]);
                prefetch_value<TYPE>(a.value, index + 16 * v + KEYS_AHEAD * a.value_strides[2]);
            }
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) {
                const __m512 weight = _mm512_set1_ps(weights[h * padded + key]);
#pragma GCC unroll 4
                for (int v = 0; v < 4; ++v) sums[h][v] = _mm512_fmadd_ps(weight, values[v], sums[h][v]);
            }
        }
        for (int h = 0; h < HEADS; ++h) {
            const __m512 inverse = _mm512_set1_ps(totals[h] == 0 ? 0.0f : 1.0f / totals[h]);
            for (int v = 0; v < 4; ++v)
                if (masks[v])
                    write(a, to + h * a.output_strides[1] + begin + 16 * v, _mm512_mul_ps(sums[h][v], inverse), masks[v]);
        }
    }
}

// One query of some heads that share a key head, in float32, without packing. What is computed for a head does not
// depend on how many are computed with it.
template <int HEADS>
void attend_few(const Attention& a, int64_t batch, int64_t head, int64_t query) {
    const int64_t key_head = head / (a.heads / a.key_heads);
    const int64_t visible = visible_keys(a, query), padded = ceil_div(visible, 16) * 16;
    const int64_t vectors = ceil_div(a.size, 16);
    memory.reserve(4 * HEADS * (padded + 16 * vectors) + 1024);
    float* scores = memory.take<float>(HEADS * padded);
    float* queries = memory.take<float>(HEADS * 16 * vectors);
    for (int h = 0; h < HEADS; ++h) {
        const int64_t from = batch * a.query_strides[0] + (head + h) * a.query_strides[1] + query * a.query_strides[2];
        for (int64_t v = 0; v < vectors; ++v) {
            const __mmask16 mask = lanes(a.size - 16 * v);
            _mm512_store_ps(queries + (h * vectors + v) * 16,
                            a.query_type == FLOAT32 ? load_value<FLOAT32>(a.query, from + 16 * v, mask)
                                                    : load_value<BFLOAT16>(a.query, from + 16 * v, mask));
        }
    }
    const int64_t keys = batch * a.key_strides[0] + key_head * a.key_strides[1];
    if (a.key_type == FLOAT32) score_few<HEADS, FLOAT32>(a, queries, keys, visible, scores, padded);
    else score_few<HEADS, BFLOAT16>(a, queries, keys, visible, scores, padded);
    float totals[HEADS];
    for (int h = 0; h < HEADS; ++h) {
        float* own = scores + h * padded;
        const int64_t mask_index =
            batch * a.mask_strides[0] + (head + h) * a.mask_strides[1] + query * a.mask_strides[2];
        totals[h] = weigh(a, own, visible, padded, mask_index,
                          [&](int64_t key, __m512 weight) { _mm512_store_ps(own + key, weight); });
    }
    const int64_t values = batch * a.value_strides[0] + key_head * a.value_strides[1];
    const int64_t to = batch * a.output_strides[0] + head * a.output_strides[1] + query * a.output_strides[2];
    if (a.value_type == FLOAT32) mix_few<HEADS, FLOAT32>(a, scores, padded, totals, values, visible, to);
    else mix_few<HEADS, BFLOAT16>(a, scores, padded, totals, values, visible, to);
}

// From `head` on, as many heads as share its keys, lie before `end` and fit into registers; returns how many.
int64_t attend_some(const Attention& a, int64_t batch, int64_t query, int64_t head, int64_t end) {
    const int64_t group = a.heads / a.key_heads;
    const int64_t count = std::min({end - head, group - head % group, int64_t(4)});
    switch (count) {
        case 1: attend_few<1>(a, batch, head, query); break;
        case 2: attend_few<2>(a, batch, head, query); break;
        case 3: attend_few<3>(a, batch, head, query); break;
        default: attend_few<4>(a, batch, head, query); break;
    }
    return count;
}

}  // namespace

void run_attention(const Attention& a) {
    const int64_t cost = a.batch * a.heads * a.queries * a.keys * (a.size + a.value_size) / 32;
    if (a.queries <= FEW_QUERIES) {
        parallel(a.batch * a.queries * a.heads, cost * 2, [&](int64_t first, int64_t last) {
            while (first < last) {
                const int64_t query = first / a.heads, head = first % a.heads;
                const int64_t end = std::min(a.heads, head + last - first);
                first += attend_some(a, query / a.queries, query % a.queries, head, end);
            }
        });
        return;
    }
    const int64_t heads = a.batch * a.key_heads;
    const int64_t pieces = std::min(ceil_div(omp_get_max_threads(), heads), ceil_div(a.queries, ROWS));
    const auto attend_all = [&](int64_t first, int64_t last, int64_t rows, const auto& attend_rows) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t head = i / pieces, piece = i % pieces;
            attend_packed(a, head / a.key_heads, head % a.key_heads, a.queries * piece / pieces,
                          a.queries * (piece + 1) / pieces, rows, attend_rows);
        }
    };
#ifdef INC_TILES
    if (a.queries >= QUERIES_OF_TILES && tiles_in_use()) {
        parallel(heads * pieces, cost / 2, [&](int64_t first, int64_t last) {
            const TileRegisters registers;
            attend_all(first, last, TILE_ROWS, attend_on_tiles);
        });
        return;
    }
#endif
    parallel(heads * pieces, cost,
             [&](int64_t first, int64_t last) { attend_all(first, last, ROWS, attend_some_queries); });
}

}  // namespace inc
