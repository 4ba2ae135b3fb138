"""How much the loss curves along the weights of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inc_torch.core.batches import Inputs, copied, described, run
from inc_torch.core.errors import ConfigError, ModelError, did_you_mean
from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.core.names import named_layers

__all__ = ["hessian_traces"]

_LEAST_ITERATIONS: Final = 10
"""Before these, the spread of the samples says little."""


def hessian_traces(
    model: nn.Module,
    names: Collection[str],
    inputs: Inputs,
    labels: object,
    loss: Callable[[Any, Any], object],
    *,
    seed: int,
    iterations: int = 500,
    tolerance: float = 0.05,
) -> dict[str, float]:
    """Estimate, for the weight of each module, the mean of the diagonal of the Hessian of the loss.

    With ``H`` the Hessian for all these weights and ``v`` of independent signs, +1 or -1 with equal chances, the mean
    of ``v * (H v)`` over the elements of one weight has ``trace / number of elements`` of its own block as expectation.
    Samples are averaged until the standard error of their sum over the weights is small. The more ``H`` is diagonal,
    the fewer it takes.

    The model computes the loss once, in evaluation mode; it is not changed, nor is torch's global random state. The
    graph of its gradient stays in memory meanwhile, several times what a step of training takes.

    Args:
        model: A float model.
        names: The modules, see `named_layers`. A weight that several of them share has the same value for each.
        inputs: One batch; not changed.
        labels: Of the batch, as ``loss`` takes them.
        loss: Returns one number for output and labels.
        seed: Of the signs. They are drawn on the CPU, so the device does not matter.
        iterations: The most samples to take, each for a backward pass through the gradient.
        tolerance: The standard error of the sum over the weights to stop at, as a share of it; not before 10 samples.
            Single weights are less exact.

    Returns:
        By name, in the order of ``names``: ``d2 loss / d w2``, averaged over the weight. Negative where the loss mostly
        curves down.

    Raises:
        ModelError: There is no module of a name, it has no floating weight, or the loss does not depend on it; an
            operation can be differentiated only once; the loss is no single number, or a second derivative not finite.
        ConfigError: ``iterations`` is less than 1.

    Example:
        >>> layer, inputs = nn.Linear(2, 1, bias=False), Inputs((torch.tensor([[1.0, 3.0]]),))
        >>> def loss(output, labels):
        ...     return (output - labels).square().sum()  # d2/dw2 is 2 * x**2, so 2 and 18
        >>> round(hessian_traces(layer, [""], inputs, torch.zeros(1, 1), loss, seed=0, tolerance=0.01)[""])
        10

    Source: Dong et al., HAWQ-V2, arXiv:1911.03852, with Hutchinson's estimator; INC 2.6.1, strategy ``hawq_v2``, which
    differs in its loss, always cross entropy; in ``H v``, which starts from noise; and in the end: once the average
    changes little from one sample to the next, which it does late or by chance, or once it is negative.
    """
    if iterations < 1:
        message = f"hessian_traces was given iterations={iterations!r}: expected a number of samples, at least 1."
        raise ConfigError(message)
    modules = dict(named_layers(model))
    weights = {name: _weight(modules, name) for name in names}
    if not weights:
        return {}
    owners = {weight: name for name, weight in weights.items()}
    generator, average = torch.Generator().manual_seed(seed), _Average(len(owners))
    with _differentiating(model, owners):
        gradients = _gradients(loss(run(model, copied(inputs)), labels), owners)
        while average.count < iterations and not average.is_settled(tolerance):
            average.add(_sample(gradients, owners, generator))
    estimates = dict(zip(owners, average.means.tolist(), strict=True))
    return {name: estimates[weight] for name, weight in weights.items()}


def _weight(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    if name not in modules:
        message = (
            f"{type(modules['']).__name__} has no module {name!r} to measure the weight of."
            f"{did_you_mean(name, modules)} Expected the name of a module with a weight."
        )
        raise ModelError(message)
    weight = modules[name]._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        message = (
            f"The weight of module {name!r} ({type(modules[name]).__name__}) is {described(weight)}: expected a "
            "Parameter of floating numbers. Measure the float model, and leave out modules that compute their weight."
        )
        raise ModelError(message)
    return weight


@contextmanager
def _differentiating(model: nn.Module, weights: Collection[nn.Parameter]) -> Iterator[None]:
    """Let ``model`` compute what can be differentiated by ``weights`` alone, any number of times."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in weights)
        with evaluating(model), without_compiling(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _gradients(loss: object, owners: Mapping[nn.Parameter, str]) -> list[torch.Tensor]:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        message = f"The loss is {described(loss)}: expected a tensor with one number, such as the mean over the batch."
        raise ModelError(message)
    found: Sequence[torch.Tensor | None] = [None] * len(owners)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, list(owners), create_graph=True, allow_unused=True)
    gradients = []
    for gradient, name in zip(found, owners.values(), strict=True):
        if gradient is None:
            message = (
                f"The loss does not depend on the weight of module {name!r}: expected one that can be differentiated "
                "by it. Leave the module out, or give a batch that reaches it and a loss without detached tensors."
            )
            raise ModelError(message)
        gradients.append(gradient)
    _require_second_derivatives(gradients, owners)
    return gradients


def _require_second_derivatives(gradients: Sequence[torch.Tensor], owners: Mapping[nn.Parameter, str]) -> None:
    """Refuse gradients through functions that are marked ``once_differentiable``.

    They leave a node in the graph that raises when it is reached; but it lies beside the ways to the weights, which are
    all that `torch.autograd.grad` follows, so that a wrong result would come instead.
    """
    seen = set[torch.autograd.graph.Node]()
    for gradient, name in zip(gradients, owners.values(), strict=True):
        nodes = [gradient.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name().endswith("::Error"):
                raise _not_twice_differentiable(name, "an operation is marked once_differentiable")
            nodes.extend(following for following, _ in node.next_functions)


def _sample(
    gradients: Sequence[torch.Tensor], owners: Mapping[nn.Parameter, str], generator: torch.Generator
) -> torch.Tensor:
    """The mean of ``v * (H v)`` for each weight, float64 [weights], with new signs ``v``."""
    signs = [_signs(weight, generator) for weight in owners]
    try:
        products = _products(gradients, list(owners), signs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        by_name = zip(owners.values(), gradients, owners, strict=True)
        failing = [name for name, gradient, weight in by_name if not _has_derivative(gradient, weight)]
        raise _not_twice_differentiable((failing or [*owners.values()])[-1], str(error).splitlines()[0]) from error
    means = torch.stack(
        [(sign * each.detach()).mean(dtype=torch.float64).cpu() for sign, each in zip(signs, products, strict=True)]
    )
    for mean, name in zip(means.tolist(), owners.values(), strict=True):
        if not math.isfinite(mean):
            message = (
                f"The second derivative of the loss by the weight of module {name!r} holds NaN or infinity: expected "
                "finite values. Look whether the loss of this batch is finite, and for roots and norms of zeros."
            )
            raise ModelError(message)
    return means


def _signs(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    ones = torch.randint(2, weight.shape, generator=generator, dtype=torch.int8)
    return (2 * ones - 1).to(weight)


def _products(
    gradients: Sequence[torch.Tensor], weights: Sequence[nn.Parameter], signs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """``H v``; zeros where the gradient is the same for all weights."""
    curved = [(gradient, sign) for gradient, sign in zip(gradients, signs, strict=True) if gradient.requires_grad]
    if not curved:
        return tuple(map(torch.zeros_like, weights))
    outputs, vectors = zip(*curved, strict=True)
    products = torch.autograd.grad(outputs, weights, vectors, retain_graph=True, materialize_grads=True)
    return tuple(product.to_dense() for product in products)  # those of sparse embeddings are sparse


@final
class _Average:
    """The mean of the samples for each weight, and how sure the sum of the means is.

    Source: Welford, Note on a method for calculating corrected sums of squares and products, Technometrics 4 (1962).
    """

    def __init__(self, weights: int) -> None:
        self.count = 0
        self.means = torch.zeros(weights, dtype=torch.float64)
        self._squares = 0.0

    def add(self, sample: torch.Tensor) -> None:
        self.count += 1
        before = sample - self.means
        self.means += before / self.count
        self._squares += float(before.sum() * (sample - self.means).sum())

    def is_settled(self, tolerance: float) -> bool:
        if self.count < _LEAST_ITERATIONS:
            return False
        standard_error = math.sqrt(self._squares / (self.count - 1) / self.count)
        return standard_error <= tolerance * abs(float(self.means.sum()))


def _not_twice_differentiable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"The gradient of the loss by the weight of module {name!r} cannot be differentiated again ({reason}): "
        "expected operations between its output and the loss that have second derivatives. Replace the one that has "
        "none (in transformers, attn_implementation='eager'), or choose a strategy that needs no Hessian."
    )


def _has_derivative(gradient: torch.Tensor, weight: nn.Parameter) -> bool:
    try:
        _products([gradient], [weight], [gradient.detach()])
    except RuntimeError:
        return False
    return True
