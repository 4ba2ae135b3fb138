"""One model for all forms in which users name it; INC's ``neural_compressor.model``."""

from __future__ import annotations

import os

from torch import nn

from inc_torch.core.errors import ConfigTypeError, did_you_mean
from inc_torch.core.frameworks import check_framework
from inc_torch.export import adorn
from inc_torch.model._inspection import Check, SavedModel, inspect_saved
from inc_torch.model._open import open_model

__all__ = ["Check", "Model", "SavedModel", "inspect_saved", "open_model"]

_WITHOUT_EFFECT = ("backend", "inputs", "outputs", "name", "workspace_path", "approach", "q_config", "device")
"""Keywords of INC's wrappers, which say nothing that a module does not say itself."""
_NOT_KNOWN = (None, "NA")


def Model(  # noqa: N802  INC's name, of a class that made objects of others
    root: nn.Module | str | os.PathLike[str],
    framework: str | None = None,
    *,
    architecture: nn.Module | None = None,
    weights_only: bool = True,
    **kwargs: object,
) -> nn.Module:
    """Return the module itself, or the saved one, with ``save``, ``report`` and ``model`` added.

    Args:
        root: A module; a directory of ``model.save`` or of Hugging Face; or a file of `torch.save` with a
            ``state_dict``. Nothing that is opened can run code.
        framework: ``"pytorch"``, or INC's ``"pytorch_fx"`` and ``"pytorch_ipex"``, which mean the same.
        architecture: The float model as your code builds it, for saved weights without it. It is copied.
        weights_only: False opens pickled modules, exported programs and TorchScript too, whose authors can have
            anything run as they are opened: as for `torch.load`.
        **kwargs: INC's ``inputs``, ``outputs``, ``backend`` and others, which say nothing that a module does not.

    Returns:
        The object that was given; doing it twice changes nothing. Loaded models are in eval mode.

    Raises:
        ArtifactError: The saved model is missing, damaged, could run code, needs ``architecture``, or is one of
            another framework.
        ConfigError: Another framework.
        ConfigTypeError: ``root`` is neither, or a keyword is unknown.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> Model(layer) is layer is layer.model is Model(Model(layer))
        True
        >>> Model("model.pb")
        Traceback (most recent call last):
        inc_torch.core.errors.ArtifactError: 'model.pb' is a model of TensorFlow: inc_torch compresses models of ...

    Source: INC 2.6.1 ``Model``; differs in that there is no wrapper, and that paths are opened.
    """
    if framework not in _NOT_KNOWN:
        check_framework("Model", framework)
    for name in kwargs:
        if name not in _WITHOUT_EFFECT:
            known = ("root", "framework", "architecture", "weights_only", *_WITHOUT_EFFECT)
            message = f"Model has no argument {name!r}.{did_you_mean(name, known)} Arguments: {', '.join(known)}."
            raise ConfigTypeError(message)
    model = open_model(root, architecture, owner="Model", argument="root", is_trusted=not weights_only)
    adorn(model)
    return model
