"""The configuration of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import choice, flag, integer, names, optional, text

__all__ = ["BenchmarkConfig"]

_BACKENDS: Final = ("default", "ipex", "itex", "onnxrt_trt_ep", "onnxrt_cuda_ep", "onnxrt_dnnl_ep", "onnxrt_dml_ep")
_ALL: Final = -1
_positive = integer("a number of 1 or more", lambda x: x >= 1)


@final
@config
class BenchmarkConfig(Config):
    """How a model is timed, and by how many processes on which cores.

    Args:
        inputs: Names of inputs, without effect for PyTorch.
        outputs: Names of outputs, without effect for PyTorch.
        backend: A label of INC, without effect; the model computes as it does anywhere else.
        device: ``"cpu"``, or ``"gpu"`` (also ``"cuda"``) for a model that lies there; ``"npu"``, ``"xpu"`` as in INC.
        warmup: Leading iterations that do not count: kernels are chosen, weights packed and memory allocated in them.
        iteration: Batches to run, those of the warm-up included; -1 is one pass over the loader.
        model_name: A label of INC, without effect for PyTorch.
        cores_per_instance: Physical cores that each instance is bound to; None is an equal share of all.
        num_of_instance: Processes that run at the same time.
        inter_num_of_threads: Threads for operators that run side by side (`torch.set_num_interop_threads`).
        intra_num_of_threads: Threads within an operator (`torch.set_num_threads`); None is one for each core.
        diagnosis: Write a profile of every operator, and print the slowest.
        ni_workload_name: A label of INC, without effect.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> config = BenchmarkConfig(warmup=10, iteration=110, cores_per_instance=4, num_of_instance=2)
        >>> config.cores_per_instance, config.iteration - config.warmup
        (4, 100)
        >>> BenchmarkConfig(num_of_instances=2)
        Traceback (most recent call last):
        inc_torch.core.errors.ConfigTypeError: BenchmarkConfig has no option 'num_of_instances'. Did you mean \
'num_of_instance'?
    """

    inputs: Sequence[str] = option(names, default=())
    outputs: Sequence[str] = option(names, default=())
    backend: str = option(choice(_BACKENDS), default="default")
    device: str = option(choice(("cpu", "gpu", "cuda", "npu", "xpu")), default="cpu")
    warmup: int = option(integer("a number of 0 or more", lambda x: x >= 0), default=5)
    iteration: int = option(integer("a number of 1 or more, or -1", lambda x: x >= 1 or x == _ALL), default=_ALL)
    model_name: str = option(text, default="")
    cores_per_instance: int | None = option(optional(_positive), default=None)
    num_of_instance: int = option(_positive, default=1)
    inter_num_of_threads: int | None = option(optional(_positive), default=None)
    intra_num_of_threads: int | None = option(optional(_positive), default=None)
    diagnosis: bool = option(flag, default=False)
    ni_workload_name: str = option(text, default="profiling")

    def options_without_effect(self) -> tuple[str, ...]:
        """Name the options that were set and change nothing for PyTorch.

        Example:
            >>> BenchmarkConfig(backend="ipex", outputs="logits").options_without_effect()
            ('outputs', 'backend')
        """
        default = type(self)()
        idle = ("inputs", "outputs", "backend", "model_name", "ni_workload_name")
        return tuple(name for name in idle if getattr(self, name) != getattr(default, name))
