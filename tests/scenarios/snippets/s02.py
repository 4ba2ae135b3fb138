from neural_compressor.config import PostTrainingQuantConfig, TuningCriterion, AccuracyCriterion

accuracy_criterion = AccuracyCriterion(
    tolerable_loss=0.01,
)
tuning_criterion = TuningCriterion(
    timeout=0,
    max_trials=100,
)
conf = PostTrainingQuantConfig(
    backend="default",
    inputs="image_tensor",
    outputs="num_detections,detection_boxes,detection_scores,detection_classes",
    device="cpu",
    approach="static",
    calibration_sampling_size=[1000, 2000],
    op_name_dict=op_dict,
    strategy="basic",
    objective="performance",
    performance_only=False,
    tuning_criterion=tuning_criterion,
    accuracy_criterion=accuracy_criterion,
)
