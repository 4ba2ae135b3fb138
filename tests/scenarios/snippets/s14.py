from neural_compressor.config import DistillationConfig

conf = DistillationConfig(
    criterion=KnowledgeDistillationLoss,
    optimizer=SGD,
)
