// The only entry points: run steps in order, and tell the sizes of their arguments.

#include "arguments.h"

namespace inc {

void run_matrix(const Matrix&);
void run_depthwise(const Matrix&);
void run_quantize(const Quantize&);
void run_dynamic_range(const DynamicRange&);
void run_layer_norm(const LayerNorm&);
void run_attention(const Attention&);
void run_add(const Elementwise&);
void run_requantize(const Elementwise&);
void run_gated(const Elementwise&);
void run_activate(const Elementwise&);
void run_affine(const Elementwise&);
void run_max_pool(const Pool&);
void run_average_pool(const Pool&);
void run_global_average_pool(const Pool&);
void run_scale_channels(const Elementwise&);
void run_rotate(const Rotate&);
void run_interleave(const Elementwise&);
void run_block_scores(const BlockScores&);
void run_zero_blocks(const ZeroBlocks&);
void run_pick_in_groups(const PickInGroups&);
void run_count_digits(const CountDigits&);
void run_collect_prefix(const CollectPrefix&);
void run_keep_largest(const KeepLargest&);
void run_few_bits(const FewBits&);

}  // namespace inc

using namespace inc;

extern "C" void inc_run(const void* const* steps, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const void* step = steps[i];
        switch (*(const int64_t*)step) {
            case MATRIX: run_matrix(*(const Matrix*)step); break;
            case DEPTHWISE: run_depthwise(*(const Matrix*)step); break;
            case QUANTIZE: run_quantize(*(const Quantize*)step); break;
            case DYNAMIC_RANGE: run_dynamic_range(*(const DynamicRange*)step); break;
            case LAYER_NORM: run_layer_norm(*(const LayerNorm*)step); break;
            case ATTENTION: run_attention(*(const Attention*)step); break;
            case ADD: run_add(*(const Elementwise*)step); break;
            case REQUANTIZE: run_requantize(*(const Elementwise*)step); break;
            case GATED: run_gated(*(const Elementwise*)step); break;
            case ACTIVATE: run_activate(*(const Elementwise*)step); break;
            case AFFINE: run_affine(*(const Elementwise*)step); break;
            case MAX_POOL: run_max_pool(*(const Pool*)step); break;
            case AVERAGE_POOL: run_average_pool(*(const Pool*)step); break;
            case GLOBAL_AVERAGE_POOL: run_global_average_pool(*(const Pool*)step); break;
            case SCALE_CHANNELS: run_scale_channels(*(const Elementwise*)step); break;
            case ROTATE: run_rotate(*(const Rotate*)step); break;
            case INTERLEAVE: run_interleave(*(const Elementwise*)step); break;
            case BLOCK_SCORES: run_block_scores(*(const BlockScores*)step); break;
            case ZERO_BLOCKS: run_zero_blocks(*(const ZeroBlocks*)step); break;
            case PICK_IN_GROUPS: run_pick_in_groups(*(const PickInGroups*)step); break;
            case COUNT_DIGITS: run_count_digits(*(const CountDigits*)step); break;
            case COLLECT_PREFIX: run_collect_prefix(*(const CollectPrefix*)step); break;
            case KEEP_LARGEST: run_keep_largest(*(const KeepLargest*)step); break;
            case FEW_BITS_PRODUCT:
            case EXPAND_FEW_BITS: run_few_bits(*(const FewBits*)step); break;
        }
    }
}

extern "C" int64_t inc_size_of_arguments(int64_t operation) {
    switch (operation) {
        case MATRIX:
        case DEPTHWISE: return sizeof(Matrix);
        case QUANTIZE: return sizeof(Quantize);
        case DYNAMIC_RANGE: return sizeof(DynamicRange);
        case LAYER_NORM: return sizeof(LayerNorm);
        case ATTENTION: return sizeof(Attention);
        case ADD:
        case REQUANTIZE:
        case GATED:
        case ACTIVATE:
        case AFFINE:
        case INTERLEAVE:
        case SCALE_CHANNELS: return sizeof(Elementwise);
        case MAX_POOL:
        case AVERAGE_POOL:
        case GLOBAL_AVERAGE_POOL: return sizeof(Pool);
        case ROTATE: return sizeof(Rotate);
        case BLOCK_SCORES: return sizeof(BlockScores);
        case ZERO_BLOCKS: return sizeof(ZeroBlocks);
        case PICK_IN_GROUPS: return sizeof(PickInGroups);
        case COUNT_DIGITS: return sizeof(CountDigits);
        case COLLECT_PREFIX: return sizeof(CollectPrefix);
        case KEEP_LARGEST: return sizeof(KeepLargest);
        case FEW_BITS_PRODUCT:
        case EXPAND_FEW_BITS: return sizeof(FewBits);
        default: return -1;
    }
}
