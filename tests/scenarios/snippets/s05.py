from neural_compressor.config import QuantizationAwareTrainingConfig

conf = QuantizationAwareTrainingConfig(
    backend="default",
    inputs="image_tensor",
    outputs="num_detections,detection_boxes,detection_scores,detection_classes",
    device="cpu",
    op_name_dict=op_dict,
    strategy="basic",
    relative=0.01,
    timeout=0,
    max_trials=100,
    objective="performance",
    performance_only=False,
)
