// How a product is cut: panels of columns, blocks of rows, pointers to rows.
#pragma once

#include "epilogue.h"

namespace inc {

constexpr int64_t BLOCK = 192;  // rows whose pointers are made at once, at most

// Vectors of 16 columns lie in memory in pairs, [depth / 4][32][4], the last one perhaps alone. Panels are 4 of them;
// what is left is one panel, or two of 2 and 3 rather than 4 and 1.
struct Panels {
    int64_t vectors, wide, count;
    explicit Panels(int64_t padded_columns) : vectors(padded_columns / 16) {
        wide = vectors / 4;
        if (vectors % 4 == 1 && wide > 0) wide -= 1;
        const int64_t left = vectors - 4 * wide;
        count = wide + (left == 0 ? 0 : left == 5 ? 2 : 1);
    }
    int64_t first(int64_t panel) const { return panel <= wide ? 4 * panel : 4 * wide + 2; }
    int64_t size(int64_t panel) const {
        if (panel < wide) return 4;
        const int64_t left = vectors - 4 * wide;
        return left == 5 ? (panel == wide ? 2 : 3) : left;
    }
};

struct Block {
    int64_t first, count;
};

// Where the rows of a block begin: table[tap * BLOCK + row].
void fill_pointers(const Matrix& m, const uint8_t* input, const Block& block, const uint8_t** table);

// Copies the images with their borders to `scratch`; returns the convolution of height x 1 that is left.
Matrix on_bordered_images(const Matrix& m);

// One group of a product on tiles; see tiled_matrix.cpp.
void multiply_on_tiles(const Matrix& m, const uint8_t* input, const int8_t* weight, const Epilogue& e);

}  // namespace inc
