// The arguments of each step. Mirrored field by field in _arguments.py, which compares the sizes when it loads.
#pragma once

#include <cstdint>

namespace inc {

// What happens to a sum of products before it is written.
struct Epilogue {
    const void* residual;
    void* output;
    const float* scale;     // of each column, padded
    const float* bias;      // of each column, padded
    const int32_t* offset;  // of each column, padded: -zero_point * column_sum
    int64_t residual_stride;
    int64_t output_stride;
    float residual_scale, residual_zero;
    float inverse, shift;              // of the output's grid
    int32_t code_low, code_high;       // where codes of a clamped output end, if `folded`
    float low, high;                   // of the clamp
    float residual_factor;             // residual_scale in steps of the output's grid, if `folded`
    int32_t folded;                    // uint8 output: scale and bias lead to codes, and nothing can overflow int32
    int32_t output_type, residual_type;
    int32_t activation, activate_last;  // activate_last: after the residual
};

struct Matrix {
    int64_t operation;
    const uint8_t* input;
    const int8_t* weight;
    const float* dynamic;        // scale and zero point of the input, or null
    const float* weight_scale;   // padded; read if dynamic
    const int32_t* column_sums;  // padded; read if dynamic
    float* dynamic_scale;        // written if dynamic; epilogue.scale then
    int32_t* dynamic_offset;     // written if dynamic; epilogue.offset then
    const uint8_t* padding;      // one pixel of zero points
    uint8_t* scratch;            // the input with its borders, if `bordered`
    int64_t rows, columns, padded_columns, groups;
    int64_t taps, depth;         // of each tap, in bytes
    int64_t pixel_stride, line_stride, image_stride;
    int64_t height, width, channels, output_height, output_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t padding_height, padding_width, dilation_height, dilation_width;
    int64_t spatial;             // 0: rows are rows; 1: convolution; 2: convolution through `scratch`
    Epilogue epilogue;
};

struct Quantize {
    int64_t operation;
    const void* input;
    void* output;
    const float* dynamic;
    int64_t sizes[4], input_strides[4], output_strides[4];
    float scale, zero;
    int32_t input_type, output_type;
};

struct DynamicRange {
    int64_t operation;
    const float* input;
    float* result;
    int64_t rows, columns, stride;
    int64_t symmetric;
};

struct LayerNorm {
    int64_t operation;
    const float* input;
    const float* residual;
    const float* weight;
    const float* bias;
    float* output;
    uint8_t* codes;
    int64_t rows, columns, input_stride, residual_stride, output_stride, codes_stride;
    float epsilon, inverse, shift;
    int32_t root_mean_square;
};

struct Attention {
    int64_t operation;
    const void* query;
    const void* key;
    const void* value;
    void* output;
    const void* mask;
    int64_t batch, heads, key_heads, queries, keys, size, value_size;
    int64_t query_strides[3], key_strides[3], value_strides[3], output_strides[3];  // batch, head, position
    int64_t mask_strides[4];
    float scale, inverse, shift;
    int32_t query_type, key_type, value_type, output_type, mask_type, causal;  // mask_type: 0 none, 1 float32, 3 bool
};

struct Elementwise {
    int64_t operation;
    const void* first;
    const void* second;
    void* output;
    const float* channel_scale;  // affine
    const float* channel_shift;
    int64_t rows, columns, first_stride, second_stride, output_stride;
    int64_t rows_of_image;      // scale_channels: rows of `first` that share a row of `second`
    float first_scale, first_zero, second_scale, second_zero, inverse, shift, low, high;
    int32_t first_type, second_type, output_type, activation;
};

struct Pool {
    int64_t operation;
    const uint8_t* input;
    void* output;
    int64_t batch, channels, height, width, output_height, output_width;
    int64_t pixel_stride, line_stride, image_stride, output_stride;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t padding_height, padding_width, dilation_height, dilation_width;
    int64_t count_padding;
    float scale, zero, inverse, shift;
    int64_t output_type;
};

struct Rotate {
    int64_t operation;
    const float* input;
    const float* cosine;
    const float* sine;
    float* output;
    int64_t batch, heads, positions, half;
    int64_t input_strides[3], cosine_strides[3], sine_strides[3], output_strides[3];  // batch, head, position
};

// Scores of pruning units, each of `block` rows by one column of dense matrices [rows * block, columns].
struct BlockScores {
    int64_t operation;
    const float* first;
    const float* second;   // multiplied with the first, or null
    const float* before;   // scores that are faded in, [rows, columns], or null
    float* output;         // may be `before`, or null: then nothing but `finite` is found out
    int64_t* finite;
    int64_t rows, columns, block, reduction;
    float divisor, decay;
};

struct ZeroBlocks {
    int64_t operation;
    float* values;        // [rows * block, columns]
    const uint8_t* keep;  // [rows, columns]
    int64_t rows, columns, block;
};

struct PickInGroups {
    int64_t operation;
    const float* scores;   // [groups, size]
    const uint8_t* keep;   // of each group; read with `mask`
    float* group_scores;   // or null
    uint8_t* mask;         // or null
    int64_t groups, size, pruned, reduction, divides;
};

// Scores by their bits, in pieces: of each the first number and the one behind the last.
struct CountDigits {
    int64_t operation;
    const uint32_t* scores;
    const int64_t* pieces;
    const int64_t* prefixes;  // of each piece: what lies above the digit in those that are counted
    int64_t* counts;          // [pieces, 2**width]
    int64_t count, shift, width;
};

struct CollectPrefix {
    int64_t operation;
    const uint32_t* scores;
    const int64_t* pieces;
    const int64_t* prefixes;
    const int64_t* places;  // of each piece: where in `output` what is found begins
    uint32_t* output;
    int64_t count, shift;
};

struct KeepLargest {
    int64_t operation;
    const uint32_t* scores;
    const int64_t* pieces;
    const int64_t* thresholds;
    const int64_t* ties;  // of each piece: how many of those that equal the threshold are not kept, the first ones
    uint8_t* keep;
    int64_t count;
};

// A weight of few bits, [outputs, inputs], in words of which each has 32 / bits whole codes.
struct FewBits {
    int64_t operation;
    const float* input;       // [rows, inputs]; not read to expand
    const int32_t* words;
    const float* scales;      // [outputs, groups]
    const int32_t* zeros;     // packed as the weight; null: codes are signed
    const int32_t* group_of;  // [inputs], or null: neighbours share a group
    const float* bias;        // [outputs], or null
    const float* table;       // what codes of up to 4 bits stand for; null: integers
    void* output;             // [rows, outputs], or the weight
    int64_t rows, inputs, outputs, groups, group, bits, input_stride, output_stride, output_type;
};

enum Operation : int64_t {
    MATRIX, DEPTHWISE, QUANTIZE, DYNAMIC_RANGE, LAYER_NORM, ATTENTION, ADD, REQUANTIZE, GATED, ACTIVATE, AFFINE,
    MAX_POOL, AVERAGE_POOL, GLOBAL_AVERAGE_POOL, SCALE_CHANNELS, ROTATE, INTERLEAVE, BLOCK_SCORES,
    ZERO_BLOCKS, PICK_IN_GROUPS, COUNT_DIGITS, COLLECT_PREFIX, KEEP_LARGEST, FEW_BITS_PRODUCT,
    EXPAND_FEW_BITS, OPERATIONS,
};

}  // namespace inc
