// Exact selection of the smallest scores, which are not negative and so are ordered as their bits are: by counting
// digits of the bits, the first digit first, piece by piece.

#include "arguments.h"
#include "common.h"

namespace inc {

namespace {

constexpr uint32_t MAGNITUDE = 0x7fffffff;
constexpr int64_t MOST_DIGITS = 1 << 11;
constexpr int64_t TABLES = 4;  // neighbours are often equal: each goes to a table of its own
constexpr int64_t AHEAD = 512;  // numbers: how far memory is asked for in advance

INLINE __m512i bits_of(const uint32_t* from, __mmask16 mask) {
    _mm_prefetch((const char*)(from + AHEAD), _MM_HINT_T0);
    return _mm512_and_si512(_mm512_maskz_loadu_epi32(mask, from), _mm512_set1_epi32(MAGNITUDE));
}

INLINE __mmask16 with_prefix(__m512i bits, int64_t shift, int64_t prefix, __mmask16 mask) {
    const __m512i above = _mm512_srl_epi32(bits, _mm_cvtsi64_si128(shift));
    return _mm512_mask_cmpeq_epi32_mask(mask, above, _mm512_set1_epi32(int(prefix)));
}

void count_piece(const CountDigits& c, int64_t piece) {
    alignas(64) uint32_t tables[TABLES][MOST_DIGITS];
    const int64_t digits = int64_t(1) << c.width;
    for (auto& table : tables) std::memset(table, 0, digits * sizeof(uint32_t));
    const __m512i low = _mm512_set1_epi32(int(digits - 1));
    const __m128i shift = _mm_cvtsi64_si128(c.shift);
    const int64_t end = c.pieces[2 * piece + 1], prefix = c.prefixes[piece];
    const bool all = c.shift + c.width >= 31;
    alignas(64) uint32_t found[16];
    for (int64_t i = c.pieces[2 * piece]; i < end; i += 16) {
        const __mmask16 mask = lanes(end - i);
        const __m512i bits = bits_of(c.scores + i, mask);
        __m512i own = _mm512_and_si512(_mm512_srl_epi32(bits, shift), low);
        int64_t count = 16;
        if (!all || mask != 0xffff) {
            const __mmask16 counted = all ? mask : with_prefix(bits, c.shift + c.width, prefix, mask);
            if (!counted) continue;
            own = _mm512_maskz_compress_epi32(counted, own);
            count = __builtin_popcount(counted);
        }
        _mm512_store_si512(found, own);
        if (count == 16) {
            for (int j = 0; j < 16; ++j) ++tables[j % TABLES][found[j]];
        } else {
            for (int64_t j = 0; j < count; ++j) ++tables[j % TABLES][found[j]];
        }
    }
    for (int64_t digit = 0; digit < digits; ++digit) {
        int64_t sum = 0;
        for (const auto& table : tables) sum += table[digit];
        c.counts[piece * digits + digit] = sum;
    }
}

void collect_piece(const CollectPrefix& c, int64_t piece) {
    const int64_t end = c.pieces[2 * piece + 1], prefix = c.prefixes[piece];
    uint32_t* to = c.output + c.places[piece];
    for (int64_t i = c.pieces[2 * piece]; i < end; i += 16) {
        const __mmask16 mask = lanes(end - i);
        const __m512i bits = bits_of(c.scores + i, mask);
        const __mmask16 found = with_prefix(bits, c.shift, prefix, mask);
        const int count = __builtin_popcount(found);
        _mm512_mask_storeu_epi32(to, lanes(count), _mm512_maskz_compress_epi32(found, bits));
        to += count;
    }
}

void keep_piece(const KeepLargest& k, int64_t piece) {
    const int64_t end = k.pieces[2 * piece + 1];
    const __m512i threshold = _mm512_set1_epi32(int(k.thresholds[piece]));
    int64_t ties = k.ties[piece];
    for (int64_t i = k.pieces[2 * piece]; i < end; i += 16) {
        const __mmask16 mask = lanes(end - i);
        const __m512i bits = bits_of(k.scores + i, mask);
        __mmask16 kept = _mm512_cmpge_epi32_mask(bits, threshold);
        if (ties > 0) {
            const __mmask16 equal = _mm512_mask_cmpeq_epi32_mask(mask, bits, threshold);
            const int64_t count = std::min<int64_t>(__builtin_popcount(equal), ties);
            kept &= ~_pdep_u32((1u << count) - 1, equal);
            ties -= count;
        }
        _mm_mask_storeu_epi8(k.keep + i, mask, _mm_maskz_set1_epi8(kept, 1));
    }
}

template <typename Step, typename Work>
void for_pieces(const Step& step, const Work& work) {
    int64_t cost = 0;
    for (int64_t piece = 0; piece < step.count; ++piece) cost += step.pieces[2 * piece + 1] - step.pieces[2 * piece];
    parallel(step.count, cost, [&](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece) work(step, piece);
    });
}

}  // namespace

void run_count_digits(const CountDigits& c) { for_pieces(c, count_piece); }

void run_collect_prefix(const CollectPrefix& c) { for_pieces(c, collect_piece); }

void run_keep_largest(const KeepLargest& k) { for_pieces(k, keep_piece); }

}  // namespace inc
