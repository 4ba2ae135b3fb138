// Scores of pruning units, and writing zeros where masks prune.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

enum Reduction : int64_t { SUM = 0, MAX = 1, NET = 2 };

constexpr int64_t AHEAD = 512;      // floats: how far memory is asked for in advance
constexpr int64_t TILE = 2048;      // columns whose sums stay in the first cache
constexpr int64_t STREAM = 1 << 18;  // floats: outputs above it go past the caches
constexpr int INFINITE = 0x7f800000;

INLINE __m512 value_of(const BlockScores& b, int64_t index, __mmask16 mask) {
    const __m512 first = load_float(b.first + index, mask);
    return b.second ? _mm512_mul_ps(first, load_float(b.second + index, mask)) : first;
}

// The greatest of magnitudes by their bits, so that a NaN is greater than all.
INLINE __m512 greatest(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

INLINE __m512 joined(__m512 sum, __m512 value, int64_t reduction) {
    if (reduction == NET) return _mm512_add_ps(sum, value);
    value = _mm512_abs_ps(value);
    return reduction == MAX ? greatest(sum, value) : _mm512_add_ps(sum, value);
}

struct Ending {
    __m512 divisor, factor, decay;
    bool multiplies, streams;

    explicit Ending(const BlockScores& b) {
        int exponent;
        divisor = _mm512_set1_ps(b.divisor), factor = _mm512_set1_ps(1 / b.divisor), decay = _mm512_set1_ps(b.decay);
        multiplies = std::frexp(b.divisor, &exponent) == 0.5f;  // a power of two: the same number, sooner
        streams = b.output && b.output != b.before && b.rows * b.columns >= STREAM;
    }
};

// Writes the scores of up to 16 units; returns the greatest fresh one by its bits.
INLINE __m512i finish(const BlockScores& b, const Ending& ending, int64_t unit, __m512 sum, __mmask16 mask) {
    if (b.reduction == NET) sum = _mm512_abs_ps(sum);
    if (b.reduction != MAX)
        sum = ending.multiplies ? _mm512_mul_ps(sum, ending.factor) : _mm512_div_ps(sum, ending.divisor);
    const __m512i seen = _mm512_castps_si512(sum);
    if (!b.output) return seen;
    if (b.before) sum = _mm512_fmadd_ps(ending.decay, load_float(b.before + unit, mask), sum);
    float* to = b.output + unit;
    if (ending.streams && mask == 0xffff && (uintptr_t(to) & 63) == 0) _mm512_stream_ps(to, sum);
    else store_float(to, sum, mask);
    return seen;
}

// Few rows: all of them at once, and no sum leaves the registers.
template <int BLOCK>
__m512i few_rows(const BlockScores& b, const Ending& ending, int64_t first, int64_t last) {
    __m512i seen = _mm512_setzero_si512();
    for (int64_t row = first; row < last; ++row)
        for (int64_t column = 0; column < b.columns; column += 16) {
            const __mmask16 mask = lanes(b.columns - column);
            const int64_t from = row * BLOCK * b.columns + column;
            __m512 sum = value_of(b, from, mask);
            if (b.reduction != NET) sum = _mm512_abs_ps(sum);
            for (int i = 1; i < BLOCK; ++i) sum = joined(sum, value_of(b, from + i * b.columns, mask), b.reduction);
            seen = _mm512_max_epi32(seen, finish(b, ending, row * b.columns + column, sum, mask));
        }
    return seen;
}

// Row after row, sums in the first cache; sums of 16 rows are added up, so that errors of many rows stay small.
__m512i many_rows(const BlockScores& b, const Ending& ending, int64_t first, int64_t last) {
    alignas(64) float sums[TILE], part[TILE];
    __m512i seen = _mm512_setzero_si512();
    for (int64_t row = first; row < last; ++row)
        for (int64_t tile = 0; tile < b.columns; tile += TILE) {
            const int64_t width = std::min(TILE, b.columns - tile);
            for (int64_t i = 0; i < b.block; ++i) {
                const int64_t from = (row * b.block + i) * b.columns + tile;
                const bool begins = i % 16 == 0, ends = i % 16 == 15 || i + 1 == b.block;
                for (int64_t column = 0; column < width; column += 16) {
                    const __mmask16 mask = lanes(width - column);
                    _mm_prefetch((const char*)(b.first + from + column + AHEAD), _MM_HINT_T0);
                    if (b.second) _mm_prefetch((const char*)(b.second + from + column + AHEAD), _MM_HINT_T0);
                    __m512 sum = begins ? _mm512_setzero_ps() : _mm512_load_ps(part + column);
                    sum = joined(sum, value_of(b, from + column, mask), b.reduction);
                    if (!ends) _mm512_store_ps(part + column, sum);
                    else if (i < 16) _mm512_store_ps(sums + column, sum);
                    else {
                        const __m512 all = _mm512_load_ps(sums + column);
                        _mm512_store_ps(sums + column, b.reduction == MAX ? greatest(all, sum) : _mm512_add_ps(all, sum));
                    }
                }
            }
            for (int64_t column = 0; column < width; column += 16) {
                const int64_t unit = row * b.columns + tile + column;
                const __m512 sum = _mm512_load_ps(sums + column);
                const __mmask16 mask = lanes(width - column);
                seen = _mm512_max_epi32(seen, finish(b, ending, unit, _mm512_maskz_mov_ps(mask, sum), mask));
            }
        }
    return seen;
}

}  // namespace

void run_block_scores(const BlockScores& b) {
    const bool flat = b.block == 1;  // one long row, in pieces for the threads
    const int64_t piece = 4096, all = b.rows * b.columns;
    const Ending ending(b);
    *b.finite = 1;
    parallel(flat ? ceil_div(all, piece) : b.rows, all * b.block, [&](int64_t first, int64_t last) {
        BlockScores own = b;
        if (flat) {
            const int64_t begin = first * piece;
            own.first += begin, own.columns = std::min(last * piece, all) - begin;
            if (own.second) own.second += begin;
            if (own.before) own.before += begin;
            if (own.output) own.output += begin;
            first = 0, last = 1;
        }
        const __m512i seen = b.block == 1   ? few_rows<1>(own, ending, first, last)
                             : b.block == 2 ? few_rows<2>(own, ending, first, last)
                             : b.block == 4 ? few_rows<4>(own, ending, first, last)
                             : b.block == 8 ? few_rows<8>(own, ending, first, last)
                                            : many_rows(own, ending, first, last);
        if (_mm512_reduce_max_epi32(seen) >= INFINITE) __atomic_store_n(b.finite, 0, __ATOMIC_RELAXED);
        _mm_sfence();  // of what went past the caches
    });
}

void run_zero_blocks(const ZeroBlocks& z) {
    const bool flat = z.block == 1;  // one long row, in pieces for the threads
    const int64_t piece = 4096, all = z.rows * z.columns;
    const int64_t count = flat ? ceil_div(all, piece) : z.rows;
    parallel(count, all * z.block, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const uint8_t* keep = z.keep + (flat ? i * piece : i * z.columns);
            const int64_t width = flat ? std::min(piece, all - i * piece) : z.columns;
            float* values = z.values + (flat ? i * piece : i * z.block * z.columns);
            for (int64_t row = 0; row < z.block; ++row, values += width)
                for (int64_t column = 0; column < width; column += 16) {
                    const __mmask16 mask = lanes(width - column);
                    const __m128i flags = _mm_maskz_loadu_epi8(mask, keep + column);
                    const __mmask16 kept = _mm_test_epi8_mask(flags, flags);
                    _mm_prefetch((const char*)(values + column + AHEAD), _MM_HINT_T0);
                    store_float(values + column, _mm512_maskz_mov_ps(kept, load_float(values + column, mask)), mask);
                }
        }
    });
}

// ------------------------------------------------------------------------------------------------------ N:M

namespace {

constexpr uint64_t EVERY_FOURTH = 0x1111111111111111ull;

// Columns of 16 groups of four: columns[j] has the j-th score of each group.
INLINE void columns_of_four(const float* from, const __mmask16* masks, __m512* columns) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    __m512 rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = load_float(from + 16 * i, masks[i]);
    const __m512 even_low = _mm512_permutex2var_ps(rows[0], even, rows[1]);
    const __m512 even_high = _mm512_permutex2var_ps(rows[2], even, rows[3]);
    const __m512 odd_low = _mm512_permutex2var_ps(rows[0], odd, rows[1]);
    const __m512 odd_high = _mm512_permutex2var_ps(rows[2], odd, rows[3]);
    columns[0] = _mm512_permutex2var_ps(even_low, even, even_high);
    columns[1] = _mm512_permutex2var_ps(odd_low, even, odd_high);
    columns[2] = _mm512_permutex2var_ps(even_low, odd, even_high);
    columns[3] = _mm512_permutex2var_ps(odd_low, odd, odd_high);
}

void groups_of_four(const PickInGroups& p, int64_t first, int64_t last) {
    const __m512i one = _mm512_set1_epi32(1), pruned = _mm512_set1_epi32(int(p.pruned));
    for (int64_t group = first; group < last; group += 16) {
        const int64_t count = std::min<int64_t>(16, last - group);
        __mmask16 masks[4];
        for (int i = 0; i < 4; ++i) masks[i] = lanes(4 * count - 16 * i);
        __m512 columns[4];
        columns_of_four(p.scores + 4 * group, masks, columns);
        __m512i ranks[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                            _mm512_setzero_si512()};
        for (int later = 1; later < 4; ++later)
            for (int earlier = 0; earlier < later; ++earlier) {
                const __mmask16 goes_first = _mm512_cmp_ps_mask(columns[earlier], columns[later], _CMP_LE_OQ);
                ranks[later] = _mm512_mask_add_epi32(ranks[later], goes_first, ranks[later], one);
                ranks[earlier] = _mm512_mask_add_epi32(ranks[earlier], __mmask16(~goes_first), ranks[earlier], one);
            }
        __mmask16 cheap[4];
        for (int i = 0; i < 4; ++i) cheap[i] = _mm512_cmplt_epi32_mask(ranks[i], pruned);
        const __mmask16 mask = lanes(count);
        if (p.group_scores) {
            __m512 sum = _mm512_maskz_mov_ps(cheap[0], columns[0]);
            for (int i = 1; i < 4; ++i) {
                const __m512 own = _mm512_maskz_mov_ps(cheap[i], columns[i]);
                sum = p.reduction == MAX ? _mm512_max_ps(sum, own) : _mm512_add_ps(sum, own);
            }
            if (p.divides) sum = _mm512_mul_ps(sum, _mm512_set1_ps(0.25f));
            store_float(p.group_scores + group, sum, mask);
        }
        if (p.mask) {
            const __m128i flags = _mm_maskz_loadu_epi8(mask, p.keep + group);
            const __mmask16 goes = __mmask16(~_mm_test_epi8_mask(flags, flags));
            uint64_t zeros = 0;
            for (int i = 0; i < 4; ++i) zeros |= _pdep_u64(cheap[i] & goes, EVERY_FOURTH << i);
            _mm512_mask_storeu_epi8(p.mask + 4 * group, bytes(4 * count), _mm512_maskz_set1_epi8(~zeros, 1));
        }
    }
}

void groups_of_any_size(const PickInGroups& p, int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
        const float* scores = p.scores + group * p.size;
        const bool stays = p.mask && p.keep[group];
        float sum = 0;
        for (int64_t i = 0; i < p.size; ++i) {
            int64_t rank = 0;
            for (int64_t j = 0; j < p.size; ++j) rank += j < i ? scores[j] <= scores[i] : scores[j] < scores[i];
            const bool cheap = rank < p.pruned;
            if (cheap) sum = p.reduction == MAX ? std::max(sum, scores[i]) : sum + scores[i];
            if (p.mask) p.mask[group * p.size + i] = stays || !cheap;
        }
        if (p.group_scores) p.group_scores[group] = p.divides ? sum / float(p.size) : sum;
    }
}

}  // namespace

void run_pick_in_groups(const PickInGroups& p) {
    parallel(ceil_div(p.groups, 16), p.groups * p.size * (p.size == 4 ? 1 : p.size), [&](int64_t first, int64_t last) {
        const int64_t end = std::min(last * 16, p.groups);
        if (p.size == 4) groups_of_four(p, first * 16, end);
        else groups_of_any_size(p, first * 16, end);
    });
}

}  // namespace inc
