// Products of uint8 rows and int8 columns: linear layers, and convolutions as products of gathered rows.
//
// Weights are cut into panels of 16, 32, 48 or 64 columns, see matrix.h. A tile is as many rows of one panel as leave 24
// sums in registers; its rows are found through pointers, one for each tap of the kernel.

#include "blocks.h"
#include "tiles.h"

namespace inc {

namespace {

constexpr int MOST_ROWS = 12;                              // of a tile
constexpr int64_t ROWS_OF_TILES = 8, DEPTH_OF_TILES = 64;  // with less, tiles of AMX are mostly empty
constexpr int64_t NEAR = 12;                               // quads ahead, where weights are read once

constexpr int rows_of_tile(int64_t vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }

struct Tile {
    const uint8_t* const* rows;  // [tap][BLOCK]
    const int8_t* weight;        // of the first two vectors
    const int8_t* second;        // of the others
    const int8_t* ahead;         // what to bring into the cache
    int64_t taps, quads, rest;   // each tap: quads * 4 + rest bytes
    int64_t row, column, columns;
    bool plain;
};

// The last one to three bytes of a row, without reading past its end.
INLINE uint32_t last_bytes(const uint8_t* row, int64_t depth, int64_t rest) {
    uint32_t value = 0;
    if (depth >= 4) {
        std::memcpy(&value, row + depth - 4, 4);
        return value >> (8 * (4 - rest));
    }
    std::memcpy(&value, row, rest);
    return value;
}

// Where the columns of one quad lie: in a pair, and in another one or a vector alone.
template <int VECTORS>
struct Columns {
    static constexpr int64_t FIRST = 64 * (VECTORS > 1 ? 2 : 1), SECOND = 64 * (VECTORS - 2);  // bytes of a quad
    const int8_t *first, *second;

    __attribute__((always_inline)) const int8_t* vector(int v) const {
        return v < 2 ? first + 64 * v : second + 64 * (v - 2);
    }

    __attribute__((always_inline)) void advance() {
        first += FIRST;
        if (VECTORS > 2) second += SECOND;
    }

    __attribute__((always_inline)) void prefetch(int64_t quads) const {
        for (int v = 0; v < VECTORS; ++v)
            _mm_prefetch((const char*)vector(v) + quads * (v < 2 ? FIRST : SECOND), _MM_HINT_T0);
    }
};

template <int ROWS, int VECTORS>
INLINE void multiply(__m512i (&sums)[ROWS][VECTORS], const __m512i (&quads)[ROWS], const Columns<VECTORS>& columns) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const __m512i column = _mm512_load_si512(columns.vector(v));
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], quads[r], column);
    }
}

template <int ROWS, int VECTORS, int OUTPUT, int RESIDUAL>
INLINE void finish_all(__m512i (&sums)[ROWS][VECTORS], const Tile& tile, const Epilogue& e) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const int64_t column = tile.column + 16 * v;
        const __mmask16 mask = lanes(tile.columns - 16 * v);
        const __m512 scale = _mm512_loadu_ps(e.scale + column), bias = _mm512_loadu_ps(e.bias + column);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            if (OUTPUT == UINT8) sums[r][v] = folded_codes<RESIDUAL>(sums[r][v], scale, bias, e, tile.row + r, column, mask);
            else finish_float<RESIDUAL>(sums[r][v], scale, bias, e, tile.row + r, column, mask);
        }
    }
    if (OUTPUT != UINT8) return;
    const __mmask64 mask = bytes(std::min<int64_t>(tile.columns, 16 * VECTORS));
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) store_folded<VECTORS>(sums[r], e, tile.row + r, tile.column, mask);
}

template <int ROWS, int VECTORS>
__attribute__((noinline)) void compute(const Tile& tile, const Epilogue& e) {
    __m512i sums[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const __m512i offset = _mm512_loadu_si512(e.offset + tile.column + 16 * v);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) sums[r][v] = offset;
    }
    Columns<VECTORS> columns{tile.weight, tile.second};
    const int8_t* ahead = tile.ahead;
    for (int64_t tap = 0; tap < tile.taps; ++tap) {
        const uint8_t* rows[ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) rows[r] = tile.rows[tap * BLOCK + r];
        for (int64_t quad = 0; quad < tile.quads; ++quad) {
            __m512i column[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) column[v] = _mm512_load_si512(columns.vector(v));
            if (ROWS <= 2) {
                columns.prefetch(NEAR);
            } else {
                _mm_prefetch((const char*)ahead, _MM_HINT_T1);
                ahead += 64;
            }
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                uint32_t four;
                std::memcpy(&four, rows[r] + 4 * quad, 4);
                const __m512i row = _mm512_set1_epi32(int32_t(four));
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], row, column[v]);
            }
            columns.advance();
        }
        if (tile.rest) {
            const int64_t depth = tile.quads * 4 + tile.rest;
            __m512i quads[ROWS];
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r)
                quads[r] = _mm512_set1_epi32(int32_t(last_bytes(rows[r], depth, tile.rest)));
            multiply(sums, quads, columns);
            columns.advance();
        }
    }
    if (tile.plain) {
        if (e.output_type == UINT8) {
            if (e.residual_type == NOTHING) finish_all<ROWS, VECTORS, UINT8, NOTHING>(sums, tile, e);
            else finish_all<ROWS, VECTORS, UINT8, UINT8>(sums, tile, e);
        } else {
            if (e.residual_type == NOTHING) finish_all<ROWS, VECTORS, FLOAT32, NOTHING>(sums, tile, e);
            else finish_all<ROWS, VECTORS, FLOAT32, FLOAT32>(sums, tile, e);
        }
        return;
    }
    alignas(64) int32_t memory[ROWS][VECTORS][16];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(memory[r][v], sums[r][v]);
    finish_tile(&memory[0][0][0], ROWS, VECTORS, e, tile.row, tile.column, tile.columns);
}

using Kernel = void (*)(const Tile&, const Epilogue&);

const Kernel kernels[4][MOST_ROWS] = {
    {compute<1, 1>, compute<2, 1>, compute<3, 1>, compute<4, 1>, compute<5, 1>, compute<6, 1>, compute<7, 1>,
     compute<8, 1>, compute<9, 1>, compute<10, 1>, compute<11, 1>, compute<12, 1>},
    {compute<1, 2>, compute<2, 2>, compute<3, 2>, compute<4, 2>, compute<5, 2>, compute<6, 2>, compute<7, 2>,
     compute<8, 2>, compute<9, 2>, compute<10, 2>, compute<11, 2>, compute<12, 2>},
    {compute<1, 3>, compute<2, 3>, compute<3, 3>, compute<4, 3>, compute<5, 3>, compute<6, 3>, compute<7, 3>,
     compute<8, 3>},
    {compute<1, 4>, compute<2, 4>, compute<3, 4>, compute<4, 4>, compute<5, 4>, compute<6, 4>},
};

// Multiplies panels of one block after the other.
class OnVectors {
  public:
    static constexpr int64_t ROWS_APART = 1;    // where blocks may begin
    static constexpr int64_t LEAST_ROWS = 24;   // of a block that is cut for a thread
    static constexpr int64_t FAR_ROWS = 24;     // of a block whose memory is far, at least
    static constexpr int64_t PRODUCTS = 256;    // in the time of one unit of `SMALL_WORK`

    OnVectors(const Matrix& m, const int8_t* weight, const Epilogue& e)
        : m(m), e(e), weight(weight), panels(m.padded_columns), plain(is_plain(e)) {}

    int64_t steps_of_panel() const { return ceil_div(here.count, rows_of_tile(4)); }

    void begin(const Block& block, const uint8_t* const* rows) { here = block, table = rows; }

    void multiply(int64_t panel, bool last, Ahead& ahead) {
        const int64_t quads = m.depth / 4, depth = m.taps * ceil_div(m.depth, 4) * 4;
        const int64_t vector = panels.first(panel), vectors = panels.size(panel);
        const int8_t* columns = weight + 16 * vector * depth;
        const int64_t bytes_of_panel = 16 * vectors * depth, step = 64 * m.taps * quads;
        const int64_t tiles = ceil_div(here.count, rows_of_tile(vectors));
        Tile tile{nullptr, columns, columns + 32 * depth, nullptr, m.taps, quads, m.depth % 4, 0, 16 * vector,
                  m.columns - 16 * vector, plain};
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t start = here.count * i / tiles, end = here.count * (i + 1) / tiles;
            tile.rows = table + start;
            tile.row = here.first + start;
            const bool useful = !last && i * step < bytes_of_panel;
            tile.ahead = columns + (useful ? bytes_of_panel + i * step : 0);
            ahead.advance();
            kernels[vectors - 1][end - start - 1](tile, e);
        }
    }

    void end() {}

  private:
    const Matrix& m;
    const Epilogue& e;
    const int8_t* weight;
    const Panels panels;
    const bool plain;
    Block here{0, 0};
    const uint8_t* const* table = nullptr;
};

}  // namespace

void run_matrix(const Matrix& given) {
    Matrix m = given;
    const int64_t padded = m.groups * m.padded_columns;
    if (m.dynamic) {
        const __m512 scale = _mm512_set1_ps(m.dynamic[0]);
        const __m512i zero = _mm512_set1_epi32(-int32_t(m.dynamic[1]));
        for (int64_t i = 0; i < padded; i += 16) {
            _mm512_storeu_ps(m.dynamic_scale + i, _mm512_mul_ps(scale, _mm512_loadu_ps(m.weight_scale + i)));
            _mm512_storeu_si512(m.dynamic_offset + i,
                                _mm512_mullo_epi32(zero, _mm512_loadu_si512(m.column_sums + i)));
        }
    }
    if (m.spatial == 2) m = on_bordered_images(m);
    const int64_t depth = m.taps * ceil_div(m.depth, 4) * 4, weight_of_group = m.padded_columns * depth;
    const bool on_tiles = m.rows >= ROWS_OF_TILES && depth >= DEPTH_OF_TILES && tiles_in_use();
    for (int64_t group = 0; group < m.groups; ++group) {
        Epilogue e = m.epilogue;
        const int64_t column = group * m.columns;
        e.scale += group * m.padded_columns;
        e.bias += group * m.padded_columns;
        e.offset += group * m.padded_columns;
        e.output = (char*)e.output + column * size_of(e.output_type);
        if (e.residual) e.residual = (const char*)e.residual + column * size_of(e.residual_type);
        const uint8_t* input = m.input + group * m.depth;
        const int8_t* weight = m.weight + group * weight_of_group;
        if (on_tiles) multiply_on_tiles(m, input, weight, e);
        else multiply_blocks<OnVectors>(m, input, weight, e);
    }
}

}  // namespace inc
