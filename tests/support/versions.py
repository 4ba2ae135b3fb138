"""Tests that want a newer torch or transformers than the oldest that anything here runs with.

Intel's extension goes with torch 2.8 and transformers 4.49, which is older than the extra ``hf`` allows: what that
extra is for, directories of the Hub and models without weights, is left out there, and so are architectures and names
of modules that transformers got later.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import metadata

import pytest


def version_of(package: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(map(int, metadata.version(package).split(".")[:2]))


IS_OLD = version_of("transformers") < (4, 57)
"""It opens no directories of this package by ``from_pretrained``, and tells so with a warning."""

_HUB = "transformers before 4.57 opens no compressed directories"
_ARCHITECTURES = "transformers before 4.57 lacks the architecture, or builds it in another way"
_CACHE = "T5 of transformers 4.49 computes something else with a cache, in float too"
_DYNAMO = "torch 2.8 captures other operators, and counts the graphs of all models of a class together"

# By the beginning of the test's name, as for fnmatch; a question mark stands for the bracket.
_FOR_TRANSFORMERS = {
    "tests/unit/huggingface/": _HUB,
    "tests/unit/benchmark/test_sources.py::test_a_hugging_face_directory_needs_nothing": _HUB,
    "tests/unit/export/test_inc_files.py::test_the_directory_for_the_hub": _HUB,
    "tests/unit/mix_precision/test_families.py::test_a_directory_is_opened": _HUB,
    "tests/unit/mix_precision/test_families.py::test_damaged_weights": _HUB,
    "tests/unit/mix_precision/test_families.py::test_the_body_alone": _HUB,
    "tests/unit/mix_precision/test_families.py::test_the_configuration_says": _HUB,
    "tests/unit/quantization/test_awq_teq.py::test_awq_is_nearer": _HUB,
    "tests/unit/quantization/test_awq_teq.py::test_folded_models_are_packed": _HUB,
    "tests/unit/quantization/test_gptq.py::test_it_is_nearer": _HUB,
    "tests/unit/quantization/test_matrix.py::TestLayerByLayer": _HUB,
    "tests/unit/quantization/test_tuning.py::TestTheModelThatIsReturned::test_layer_by_layer_from_files": _HUB,
    "tests/unit/inference/test_passes.py::test_layers_of_llama": _ARCHITECTURES,
    "tests/unit/mix_precision/test_families.py::test_it_generates_with_a_cache?t5": _CACHE,
    "tests/unit/pruners/calibrated/test_walk.py::TestTransformers::*gemma?": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_dead_heads_are_gone*?distilbert": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_dead_heads_are_gone*?gpt2": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_dead_heads_are_gone*?opt": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_dead_heads_are_gone*?vit": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_heads_that_a_configuration_cannot_describe": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_the_slimmed_model_can_be_trained": _ARCHITECTURES,
    "tests/unit/pruners/slimming/test_heads.py::test_what_is_saved_is_opened*vit": _ARCHITECTURES,
    "tests/unit/pruners/test_heads.py::test_the_attentions_of_a_model_are_found?vit": _ARCHITECTURES,
    "tests/unit/quantizers/test_smoothing.py::test_folding_changes_weights_and_not_the_output?llama": _ARCHITECTURES,
    "tests/unit/tuning/test_blocks.py::test_the_blocks_of_a_known_architecture?swin": _ARCHITECTURES,
    "tests/unit/tuning/test_blocks.py::test_the_blocks_of_a_known_architecture?vit": _ARCHITECTURES,
    "tests/unit/tuning/test_blocks.py::test_the_blocks_of_other_transformers?experts in one tensor": _ARCHITECTURES,
    "tests/unit/tuning/test_blocks.py::test_the_blocks_of_other_transformers?heads wider": _ARCHITECTURES,
}
_FOR_TORCH = {
    "tests/unit/inference/test_optimize.py::test_a_fused_graph_that_is_too_far_off": _DYNAMO,
    "tests/unit/inference/test_optimize.py::test_nothing_keeps_a_model_alive": _DYNAMO,
    "tests/unit/inference/test_optimize.py::test_twelve_shapes_and_nine_models": _DYNAMO,
    "tests/unit/inference/test_passes.py::test_codes_are_joined_shuffled_and_split?<lambda>-expected7?": _DYNAMO,
    "tests/unit/inference/test_passes.py::test_what_only_looks_alike_stays_and_is_right?<lambda>-native_b": _DYNAMO,
}


def skip_what_is_newer(items: list[pytest.Item]) -> None:
    """Skip the tests of what the installed releases do not have, each with its reason."""
    table = (_FOR_TRANSFORMERS if IS_OLD else {}) | (_FOR_TORCH if version_of("torch") == (2, 8) else {})
    for item in items:
        for start, reason in table.items():
            if fnmatchcase(item.nodeid, f"{start}*"):
                item.add_marker(pytest.mark.skip(reason=reason))
