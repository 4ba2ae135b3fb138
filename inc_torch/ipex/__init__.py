"""Models on the kernels of Intel Extension for PyTorch, which is imported here alone, and only when asked for.

The extension is a second way to *run* an int8 model of ours; prepared, calibrated, smoothed, trained and saved it is
in the same way as for the default backend::

    prepare ─► calibrate ─► realise(recipe) ─► convert ─► int8 model ─► deploy
                  │                                                       │
                  └─► Observation: what the extension computes            ▼
                      in int8 besides layers (add, matmul, pools)     IpexProgram, the model's forward

`deploy` hands the codes, scales and ranges of the model's layers to the extension through its configuration summary
(``best_configure.json``), lets it convert and trace, and puts the program in the place of the model's ``forward``.
`deploy_bfloat16` does the same for models of which parts compute in bfloat16, by `ipex.optimize`.

    _extension.py     the one import, and the one error
    _summary.py       the summary as plain values: its operations, and changing how they are computed
    _observation.py   what the extension sees of a float model and its data
    _floating.py      the float model that an int8 model stands for
    _bfloat16.py      parts of it that compute in bfloat16
    _program.py       traced programs, by what a call was given
    _overwriting.py   a fault of its fused additions, and the way around
    _deployment.py    from a model to its program, to files, and back
    _rules.py         what it has no kernel for
    _inc.py           summaries that Intel Neural Compressor wrote
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.ipex._rules import SUMMARY, WITHOUT_KERNEL, for_extension

if TYPE_CHECKING:
    from inc_torch.ipex._deployment import (
        deploy,
        deploy_bfloat16,
        deployed,
        deployment_of,
        redeploy,
        withdraw,
    )
    from inc_torch.ipex._extension import is_available, require_extension
    from inc_torch.ipex._floating import float_counterpart
    from inc_torch.ipex._inc import SummaryRange, ranges_of
    from inc_torch.ipex._observation import Observation
    from inc_torch.ipex._program import IpexProgram
    from inc_torch.ipex._summary import (
        FUNCTIONS,
        LAYERS,
        IpexOperation,
        Summary,
        int8_operations,
        operations_of,
        read_summary,
    )

__all__ = [
    "FUNCTIONS",
    "LAYERS",
    "SUMMARY",
    "WITHOUT_KERNEL",
    "IpexOperation",
    "IpexProgram",
    "Observation",
    "Summary",
    "SummaryRange",
    "deploy",
    "deploy_bfloat16",
    "deployed",
    "deployment_of",
    "float_counterpart",
    "for_extension",
    "int8_operations",
    "is_available",
    "operations_of",
    "ranges_of",
    "read_summary",
    "redeploy",
    "require_extension",
    "withdraw",
]

_LATER = {
    "FUNCTIONS": "_summary",
    "IpexOperation": "_summary",
    "IpexProgram": "_program",
    "LAYERS": "_summary",
    "Observation": "_observation",
    "Summary": "_summary",
    "SummaryRange": "_inc",
    "deploy": "_deployment",
    "deploy_bfloat16": "_deployment",
    "deployed": "_deployment",
    "deployment_of": "_deployment",
    "float_counterpart": "_floating",
    "int8_operations": "_summary",
    "is_available": "_extension",
    "operations_of": "_summary",
    "ranges_of": "_inc",
    "read_summary": "_summary",
    "redeploy": "_deployment",
    "require_extension": "_extension",
    "withdraw": "_deployment",
}
"""Where the names are that ``import inc_torch`` has no need of."""


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(f"inc_torch.ipex.{_LATER[name]}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
