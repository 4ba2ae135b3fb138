"""Products are tested with and without the tiles of AMX, where the processor has them."""

from __future__ import annotations

import pytest

from inc_torch.kernels import _library
from inc_torch.kernels._build import _cpu_flags


@pytest.fixture(params=["vectors", "tiles"] if "amx_int8" in _cpu_flags() else ["vectors"])
def instructions(request):
    """Let products run on vectors alone, or on tiles too."""
    wanted = request.param == "tiles"
    if _library.use_tiles(wanted) is not wanted:
        pytest.skip("the processor has AMX, but the compiler or the system does not")
    yield request.param
    _library.use_tiles(True)
