from neural_compressor.config import WeightPruningConfig

conf = WeightPruningConfig(
    start_step=0,
    end_step=10,
    pruning_frequency=2,
    target_sparsity=0.97,
    pruning_configs=[pruning_config],
)
