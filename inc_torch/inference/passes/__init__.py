"""From a captured graph to a fused one.

What is computed anyway is said explicitly, then moved together: every call of an int8 module becomes an `Encode`, which
rounds its input, and a product on codes. What follows a product goes into it; an `Encode` climbs towards what made its
input until that can write codes itself; a `Decode` sinks towards what reads its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch.fx import Graph, Node

from inc_torch.inference._graph import merge_equal
from inc_torch.inference._operations import Operation
from inc_torch.inference.passes._epilogues import fuse_activations, fuse_residuals
from inc_torch.inference.passes._explicit import drop_copies, say_codes, say_slices
from inc_torch.inference.passes._finding import find_attention, find_gates, find_norms, find_rotations, halve_heads
from inc_torch.inference.passes._joining import find_shuffles, read_parts
from inc_torch.inference.passes._layouts import keep_apart, keep_layouts, owners_of_results, relax_views
from inc_torch.inference.passes._merging import merge_linears
from inc_torch.inference.passes._moving import move_codes

__all__ = ["fuse"]

_PASSES: Final[tuple[Callable[[Graph], None], ...]] = (
    drop_copies,
    say_slices,
    find_shuffles,
    read_parts,
    merge_equal,
    say_codes,
    merge_equal,
    fuse_residuals,
    fuse_activations,
    find_gates,
    merge_linears,
    find_rotations,
    find_attention,
    find_norms,
    halve_heads,
    move_codes,
    read_parts,
    merge_equal,
    relax_views,
    keep_layouts,
)


def fuse(graph: Graph) -> None:
    """Rewrite ``graph`` in place."""
    owners = owners_of_results(graph)
    for rewrite in _PASSES:
        rewrite(graph)
        graph.eliminate_dead_code(_has_effects)
    keep_apart(graph, owners)
    graph.lint()


def _has_effects(node: Node) -> bool:
    return not isinstance(node.target, Operation) and bool(node.is_impure())
