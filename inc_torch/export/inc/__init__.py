"""Models that Intel Neural Compressor 2.X saved, opened without running anything that is in their files.

```
 best_model.pt ──► read_file ──► parse: int8 layers, ranges, floats ──► input_ranges ──► int8 modules of ours
                   tensors and   (_layers.py)                           by names, or     (_rebuild.py)
                   plain values                                         along the graph
                   (_pickled.py)                                        (_ranges.py)
```
"""

from __future__ import annotations

from inc_torch.export.inc._pickled import FILE_NAMES, find_file
from inc_torch.export.inc._rebuild import load_inc
from inc_torch.export.inc._summary import find_summary, load_inc_summary

__all__ = ["FILE_NAMES", "find_file", "find_summary", "load_inc", "load_inc_summary"]
