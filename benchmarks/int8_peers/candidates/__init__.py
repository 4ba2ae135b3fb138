"""Who is compared: one line a candidate, one file a library.

To add one, write a function ``(Job) -> Runner`` into a file of this folder and give it a line in ``CANDIDATES``. It is
called again for another number of threads, with that number set in torch: what does not depend on it belongs into
`Job.once` or into a file in ``Job.scratch``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run a model.

    Attributes:
        title: Its name in tables.
        module: The file of this folder.
        function: The function in it.
        packages: Whose versions count.
        environment: "peers" or "ipex".
    """

    title: str
    module: str
    function: str
    packages: tuple[str, ...] = ("torch",)
    environment: str = "peers"

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages, as this environment has them."""
        return {name: str(importlib.import_module(name).__version__) for name in self.packages}


CANDIDATES = {
    "fp32": Candidate("float32, eager", "plain", "eager"),
    "fp32-compile": Candidate("float32, torch.compile", "plain", "compiled"),
    "bf16": Candidate("bfloat16, eager", "plain", "eager_bfloat16"),
    "bf16-compile": Candidate("bfloat16, torch.compile", "plain", "compiled_bfloat16"),
    "fx": Candidate("int8, torch.ao FX", "fx", "static"),
    "pt2e": Candidate("int8, torchao PT2E + Inductor", "pt2e", "static", ("torch", "torchao")),
    "onnxruntime": Candidate("int8, ONNX Runtime", "onnx_runtime", "static", ("onnxruntime", "onnx")),
    "openvino": Candidate("int8, OpenVINO + NNCF", "open_vino", "static", ("openvino", "nncf")),
    "ipex": Candidate("int8, IPEX", "ipex", "static", ("torch", "intel_extension_for_pytorch"), environment="ipex"),
    "inc_torch": Candidate("int8, inc_torch as converted", "ours", "converted", ("torch", "inc_torch")),
    "inc_torch-optimized": Candidate(
        "int8, inc_torch optimize_for_inference", "ours", "optimized", ("torch", "inc_torch")
    ),
}
BASE = "fp32"
