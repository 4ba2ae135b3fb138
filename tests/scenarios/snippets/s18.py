from neural_compressor.config import MixedPrecisionConfig, TuningCriterion, AccuracyCriterion

accuracy_criterion = AccuracyCriterion(
    tolerable_loss=0.01,
)
tuning_criterion = TuningCriterion(
    timeout=0,
    max_trials=100,
)
conf = MixedPrecisionConfig(
    backend="default",
    inputs="image_tensor",
    outputs="num_detections,detection_boxes,detection_scores,detection_classes",
    device="cpu",
    tuning_criterion=tuning_criterion,
    accuracy_criterion=accuracy_criterion,
)
