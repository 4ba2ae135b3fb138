// The products of matrix.cpp on tiles: two tiles of rows by two of columns at a time.
//
// Weights lie as they do there: 16 quads of a vector are a tile. Sums go through memory, and those of one unit are
// finished while the next is multiplied.

#include "blocks.h"
#include "tiles.h"

namespace inc {

#ifdef INC_TILES

namespace {

constexpr int64_t UNIT_ROWS = 2 * TILE_ROWS;
constexpr int64_t UNIT_VECTORS = 2;

// A tile's worth of rows: 64 bytes of each of 16.
struct Strip {
    const uint8_t* first;
    int64_t stride;
};

// The rows of a block as strips, where they lie if 16 of them are evenly apart, and otherwise copied.
class Strips {
  public:
    void fill(const Matrix& m, const uint8_t* const* table, int64_t rows) {
        by_tap = m.taps == 1 || m.depth % TILE_BYTES == 0;
        of_tap = ceil_div(m.depth, TILE_BYTES);
        quads = ceil_div(m.depth, 4);
        chunks = by_tap ? m.taps * of_tap : ceil_div(m.taps * quads * 4, TILE_BYTES);
        const int64_t tiles = ceil_div(rows, TILE_ROWS), bytes_of_tile = (chunks + 1) * TILE_ROWS * TILE_BYTES;
        if (int64_t(strips.size()) < tiles * chunks) strips.resize(tiles * chunks);
        if (int64_t(copies.size()) < tiles * bytes_of_tile + TILE_BYTES) copies.resize(tiles * bytes_of_tile + TILE_BYTES);
        uint8_t* room = (uint8_t*)((uintptr_t(copies.data()) + TILE_BYTES - 1) / TILE_BYTES * TILE_BYTES);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t count = std::min(TILE_ROWS, rows - tile * TILE_ROWS);
            Strip* to = strips.data() + tile * chunks;
            if (by_tap) find(m, table + tile * TILE_ROWS, count, to, room + tile * bytes_of_tile);
            else join(m, table + tile * TILE_ROWS, count, to, room + tile * bytes_of_tile);
        }
    }

    const Strip* of_tile(int64_t tile) const { return strips.data() + tile * chunks; }

    int64_t chunks = 0;  // of 64 bytes along the depth

  private:
    // Each tap for itself.
    void find(const Matrix& m, const uint8_t* const* table, int64_t count, Strip* to, uint8_t* room) const {
        for (int64_t tap = 0; tap < m.taps; ++tap, table += BLOCK) {
            bool even = count == TILE_ROWS;
            const int64_t stride = even ? table[1] - table[0] : 0;
            for (int64_t r = 2; even && r < TILE_ROWS; ++r) even = table[r] - table[r - 1] == stride;
            for (int64_t begin = 0; begin < m.depth; begin += TILE_BYTES, ++to, room += TILE_ROWS * TILE_BYTES) {
                const int64_t width = std::min(TILE_BYTES, m.depth - begin);
                if (even && width == TILE_BYTES) {
                    *to = {table[0] + begin, stride};
                    continue;
                }
                for (int64_t r = 0; r < count; ++r)
                    _mm512_storeu_si512(room + r * TILE_BYTES, _mm512_maskz_loadu_epi8(bytes(width), table[r] + begin));
                *to = {room, TILE_BYTES};
            }
        }
    }

    // All taps of a row side by side, in whole quads, zero at the end.
    void join(const Matrix& m, const uint8_t* const* table, int64_t count, Strip* to, uint8_t* room) const {
        const int64_t stride = (chunks + 1) * TILE_BYTES;  // the last tap is written beyond the last chunk
        for (int64_t r = 0; r < count; ++r)
            _mm512_storeu_si512(room + r * stride + (chunks - 1) * TILE_BYTES, _mm512_setzero_si512());
        for (int64_t tap = 0; tap < m.taps; ++tap, table += BLOCK)
            for (int64_t begin = 0; begin < m.depth; begin += TILE_BYTES) {
                uint8_t* column = room + tap * quads * 4 + begin;
                const __mmask64 mask = bytes(m.depth - begin);
                if (m.depth - begin > TILE_BYTES / 2)
                    for (int64_t r = 0; r < count; ++r)
                        _mm512_storeu_si512(column + r * stride, _mm512_maskz_loadu_epi8(mask, table[r] + begin));
                else  // narrow stores cross fewer lines
                    for (int64_t r = 0; r < count; ++r)
                        _mm256_storeu_si256((__m256i*)(column + r * stride),
                                            _mm256_maskz_loadu_epi8(__mmask32(mask), table[r] + begin));
            }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) to[chunk] = {room + chunk * TILE_BYTES, stride};
    }

    std::vector<Strip> strips;
    std::vector<uint8_t> copies;
    bool by_tap = true;
    int64_t of_tap = 0, quads = 0;
};

// Sums that wait to be finished, a few rows at each step.
class Pending {
  public:
    explicit Pending(const Epilogue& e) : e(e) {}

    // Takes what was computed to `free_sums()`; it has been finished by the end of as many steps.
    void put(int64_t row, int64_t rows, int64_t vectors, int64_t column, int64_t columns, int64_t steps) {
        sums = memory[turn], this->row = row, left = rows, this->vectors = vectors;
        this->column = column, this->columns = columns, each = ceil_div(rows, steps);
        turn ^= 1;
    }

    int32_t* free_sums() { return memory[turn]; }

    void advance() {
        if (left > 0) finish(std::min(each, left));
    }

    void finish_all() {
        if (left > 0) finish(left);
    }

  private:
    __attribute__((noinline)) void finish(int64_t rows) {
        finish_tile(sums, rows, vectors, e, row, column, columns);
        sums += rows * vectors * TILE_ROWS, row += rows, left -= rows;
    }

    alignas(64) int32_t memory[2][UNIT_ROWS * UNIT_VECTORS * TILE_ROWS];
    const Epilogue& e;
    const int32_t* sums = nullptr;
    int64_t row = 0, left = 0, vectors = 0, column = 0, columns = 0, each = 0, turn = 0;
};

struct Unit {
    const Strip *upper, *lower;
    int64_t chunks;
    const int8_t* weight;
    const int32_t* offset;  // what sums begin with
    const int8_t* ahead;    // what comes into the cache,
    int64_t each;           // and how many lines of it with each chunk
};

template <bool LOWER, int VECTORS>
__attribute__((noinline)) void multiply(const Unit& u, Pending& pending) {
    constexpr int64_t stride = 64 * VECTORS;  // of quads, in bytes
    load_tile<0>(u.offset, 0);
    if (VECTORS > 1) load_tile<1>(u.offset + 16, 0);
    if (LOWER) load_tile<2>(u.offset, 0);
    if (LOWER && VECTORS > 1) load_tile<3>(u.offset + 16, 0);
    const int8_t *weight = u.weight, *ahead = u.ahead;
    for (int64_t chunk = 0; chunk < u.chunks; ++chunk, weight += TILE_ROWS * stride) {
        load_tile<6>(weight, stride);
        load_tile<4>(u.upper[chunk].first, u.upper[chunk].stride);
        multiply_codes<0, 4, 6>();
        if (VECTORS > 1) {
            load_tile<7>(weight + 64, stride);
            multiply_codes<1, 4, 7>();
        }
        if (LOWER) {
            load_tile<5>(u.lower[chunk].first, u.lower[chunk].stride);
            multiply_codes<2, 5, 6>();
            if (VECTORS > 1) multiply_codes<3, 5, 7>();
        }
        for (int64_t i = 0; i < u.each; ++i, ahead += 64) _mm_prefetch((const char*)ahead, _MM_HINT_T1);
        pending.advance();
    }
    pending.finish_all();
    int32_t* sums = pending.free_sums();
    constexpr int64_t line = VECTORS * TILE_BYTES, half = VECTORS * TILE_ROWS * TILE_ROWS;
    store_tile<0>(sums, line);
    if (VECTORS > 1) store_tile<1>(sums + 16, line);
    if (LOWER) store_tile<2>(sums + half, line);
    if (LOWER && VECTORS > 1) store_tile<3>(sums + half + 16, line);
}

using Kernel = void (*)(const Unit&, Pending&);

const Kernel kernels[2][UNIT_VECTORS] = {{multiply<false, 1>, multiply<false, 2>},
                                         {multiply<true, 1>, multiply<true, 2>}};

thread_local Strips strips_of_thread;

// Multiplies panels of one block after the other.
class OnTiles {
  public:
    static constexpr int64_t ROWS_APART = TILE_ROWS;
    static constexpr int64_t LEAST_ROWS = UNIT_ROWS;
    static constexpr int64_t FAR_ROWS = BLOCK;  // with fewer, weights come slower than they are multiplied
    static constexpr int64_t PRODUCTS = 768;

    OnTiles(const Matrix& m, const int8_t* weight, const Epilogue& e)
        : m(m), e(e), weight(weight), panels(m.padded_columns), pending(e) {}

    int64_t steps_of_panel() const { return ceil_div(here.count, UNIT_ROWS) * 2; }

    void begin(const Block& block, const uint8_t* const* rows) {
        here = block;
        strips.fill(m, rows, block.count);
    }

    void multiply(int64_t panel, bool last, Ahead& ahead) {
        const int64_t depth = m.taps * ceil_div(m.depth, 4) * 4;
        const int64_t begin = panels.first(panel), end = begin + panels.size(panel);
        for (int64_t vector = begin; vector < end; vector += UNIT_VECTORS) {
            const int64_t vectors = std::min(UNIT_VECTORS, end - vector);
            const bool useful = !last || vector + vectors < end;
            multiply_columns(weight + 16 * vector * depth, vectors, 16 * vector, useful ? 16 * vectors * depth : 0, ahead);
        }
    }

    void end() { pending.finish_all(); }

  private:
    // The weights stay in the nearest cache while rows pass; those `next` bytes further on come into the cache.
    void multiply_columns(const int8_t* columns, int64_t vectors, int64_t column, int64_t next, Ahead& ahead) {
        const int64_t tiles = ceil_div(here.count, TILE_ROWS), units = ceil_div(here.count, UNIT_ROWS);
        const int64_t each = next ? ceil_div(TILE_ROWS * vectors, units) : 0;
        for (int64_t i = 0; i < units; ++i) {
            const bool lower = 2 * i + 1 < tiles;
            const Unit unit{strips.of_tile(2 * i), strips.of_tile(2 * i + lower), strips.chunks, columns,
                            e.offset + column, columns + next + i * each * strips.chunks * 64, each};
            kernels[lower][vectors - 1](unit, pending);
            const int64_t rows = std::min(UNIT_ROWS, here.count - i * UNIT_ROWS);
            pending.put(here.first + i * UNIT_ROWS, rows, vectors, column, m.columns - column, strips.chunks);
            ahead.advance();
        }
    }

    const Matrix& m;
    const Epilogue& e;
    const int8_t* weight;
    const Panels panels;
    const TileRegisters registers;
    Strips& strips = strips_of_thread;
    Pending pending;
    Block here{0, 0};
};

}  // namespace

void multiply_on_tiles(const Matrix& m, const uint8_t* input, const int8_t* weight, const Epilogue& e) {
    multiply_blocks<OnTiles>(m, input, weight, e);
}

#else

void multiply_on_tiles(const Matrix&, const uint8_t*, const int8_t*, const Epilogue&) {}

#endif

}  // namespace inc
