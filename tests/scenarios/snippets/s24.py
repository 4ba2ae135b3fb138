from neural_compressor.config import BenchmarkConfig

conf = BenchmarkConfig(
    backend="default",
    inputs="image_tensor",
    outputs="num_detections,detection_boxes,detection_scores,detection_classes",
    device="cpu",
    warmup=10,
    iteration=100,
    cores_per_instance=4,
    num_of_instance=7,
    inter_num_of_threads=1,
    intra_num_of_threads=4,
)
