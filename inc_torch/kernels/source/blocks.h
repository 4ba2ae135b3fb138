// The order in which a product is computed: blocks of rows, and in each of them one panel of columns after the other.
#pragma once

#include <vector>

#include "matrix.h"

namespace inc {

constexpr int64_t BLOCK_BYTES = 200000;  // of a block's inputs, residuals and outputs: two blocks fit into L2
constexpr int64_t FAR = 1 << 21;         // of all blocks: with more they do not stay in a near cache
constexpr int64_t ROWS_OF_MEMORY = 64;   // with fewer, weights come slower than they are multiplied

// A walk along the lines of memory of some rows, a few at each step, to bring them into the cache.
struct Walk {
    const char* row = nullptr;
    int64_t stride = 0, width = 0, byte = 0, rows = 0, each = 0;  // from row to row and of a row, in bytes; lines a step

    Walk() = default;
    Walk(const void* memory, int32_t type, int64_t elements, int64_t columns, const Block& block, int64_t steps)
        : row((const char*)memory + block.first * elements * size_of(type)),
          stride(elements * size_of(type)),
          width(columns * size_of(type)),
          rows(block.count),
          each(ceil_div(rows * ceil_div(width, 64), steps)) {}

    template <int WRITE>
    __attribute__((always_inline)) void advance() {
        for (int64_t i = 0; i < each && rows; ++i) {
            __builtin_prefetch(row + byte, WRITE, 2);
            byte += 64;
            if (byte >= width) byte = 0, row += stride, --rows;
        }
    }
};

// What the next block reads and writes besides weights: it comes into the cache while this block is computed, in the
// order of memory. Of the taps only the last one is walked along: where it is now, the others will be.
struct Ahead {
    Walk output, residual;
    const uint8_t* const* rows = nullptr;
    const uint8_t* const* end = nullptr;
    int64_t depth = 0, byte = 0, each = 0;

    Ahead() = default;
    Ahead(const Matrix& m, const Epilogue& e, const Block& next, const uint8_t* const* table, int64_t steps)
        : output(e.output, e.output_type, e.output_stride, m.columns, next, steps),
          rows(table + (m.taps - 1) * BLOCK),
          end(rows + next.count),
          depth(m.depth),
          each(ceil_div(next.count * ceil_div(m.depth, 64), steps)) {
        if (e.residual) residual = Walk(e.residual, e.residual_type, e.residual_stride, m.columns, next, steps);
    }

    __attribute__((always_inline)) void advance() {
        output.advance<1>();
        residual.advance<0>();
        for (int64_t i = 0; i < each && rows < end; ++i) {
            __builtin_prefetch(*rows + byte, 0, 2);
            byte += 64;
            if (byte >= depth) byte = 0, ++rows;
        }
    }
};

INLINE int64_t bytes_besides_weights(const Matrix& m, const Epilogue& e) {
    return m.depth + m.columns * (size_of(e.output_type) + (e.residual ? size_of(e.residual_type) : 0));
}

// How rows are cut into blocks.
struct Cut {
    int64_t rows, apart, count;

    Block block(int64_t index) const {
        const int64_t units = ceil_div(rows, apart);
        const int64_t first = units * index / count * apart, end = units * (index + 1) / count * apart;
        return {first, std::min(end, rows) - first};
    }
};

// `Worker` multiplies the panels of a block; each thread has one of its own.
template <typename Worker>
void multiply_blocks(const Matrix& m, const uint8_t* input, const int8_t* weight, const Epilogue& e) {
    const int64_t panels = Panels(m.padded_columns).count;
    const int64_t depth = m.taps * ceil_div(m.depth, 4) * 4;
    const int64_t cost = std::max(m.rows, ROWS_OF_MEMORY) * m.padded_columns * depth / Worker::PRODUCTS;
    const int64_t bytes_of_row = bytes_besides_weights(m, e);
    const bool far = m.rows * bytes_of_row > FAR;
    const int64_t most = far ? std::clamp(BLOCK_BYTES / bytes_of_row / 24 * 24, Worker::FAR_ROWS, BLOCK) : BLOCK;
    Cut cut{m.rows, Worker::ROWS_APART, ceil_div(m.rows, most)};
    const int64_t threads = cost < SMALL_WORK ? 1 : omp_get_max_threads();
    if (threads > 1 && cut.count * panels < 4 * threads)
        cut.count = std::max(cut.count, std::min(ceil_div(4 * threads, panels), ceil_div(m.rows, Worker::LEAST_ROWS)));
    parallel(cut.count * panels, cost, [&](int64_t first, int64_t last) {
        static thread_local std::vector<const uint8_t*> tables;
        if (int64_t(tables.size()) < 2 * m.taps * BLOCK) tables.resize(2 * m.taps * BLOCK);
        const uint8_t **table = tables.data(), **next_table = table + m.taps * BLOCK;
        Worker worker(m, weight, e);
        Ahead ahead;
        for (int64_t task = first; task < last; ++task) {
            const int64_t block = task / panels, panel = task % panels;
            if (task == first || panel == 0) {
                const Block here = cut.block(block);
                if (far && task != first) std::swap(table, next_table);
                else fill_pointers(m, input, here, table);
                worker.begin(here, table);
                ahead = Ahead();
                if (far && (block + 1) * panels < last) {
                    const Block next = cut.block(block + 1);
                    fill_pointers(m, input, next, next_table);
                    ahead = Ahead(m, e, next, next_table, panels * worker.steps_of_panel());
                }
            }
            worker.multiply(panel, task + 1 == last || panel + 1 == panels, ahead);
        }
        worker.end();
    });
}

}  // namespace inc
