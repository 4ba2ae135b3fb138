// Tiles of AMX: eight registers of 16 rows of 64 bytes, and products of whole tiles.
#pragma once

#include "common.h"

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define INC_TILES 1
#endif

namespace inc {

constexpr int64_t TILE_ROWS = 16;    // and columns of 32 bits
constexpr int64_t TILE_BYTES = 64;   // of a row

// Whether products run on tiles: they are compiled in, the system grants them, and nobody switched them off.
bool tiles_in_use();

#ifdef INC_TILES

// All eight registers of this thread, whole, from here to the end of the scope.
struct TileRegisters {
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) shape.bytes[i] = TILE_BYTES, shape.rows[i] = TILE_ROWS;
        asm volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~TileRegisters() { asm volatile("tilerelease" ::: "memory"); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int TO>
INLINE void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"n"(TO));
}

template <int TO>
INLINE void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(TO) : "memory");
}

template <int FROM>
INLINE void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(FROM) : "memory");
}

// sums += rows * columns: uint8 by int8 to int32, four neighbours along the depth in one lane.
template <int SUMS, int ROWS, int COLUMNS>
INLINE void multiply_codes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(SUMS), "n"(ROWS), "n"(COLUMNS));
}

// sums += rows * columns: bfloat16 to float32, two neighbours along the depth in one lane.
template <int SUMS, int ROWS, int COLUMNS>
INLINE void multiply_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(SUMS), "n"(ROWS), "n"(COLUMNS));
}

#endif

}  // namespace inc
