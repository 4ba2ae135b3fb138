"""The harness itself: results in order, failures with their tracebacks, and an end."""

from __future__ import annotations

import time

import pytest
import torch
from torch import distributed

from tests.distributed.worlds import run_world


def add_up(values: list[int]) -> torch.Tensor:
    total = torch.tensor(values[distributed.get_rank()])
    distributed.all_reduce(total)
    return total


def fail_on_rank_1() -> None:
    if distributed.get_rank() == 1:
        message = "out of luck"
        raise ValueError(message)
    distributed.barrier()


def sleep() -> None:
    time.sleep(60)


def test_results_come_in_the_order_of_ranks():
    assert run_world(add_up, 2, [3, 4]) == [7, 7]


def test_a_failure_is_told_with_its_traceback_and_ends_the_others():
    with pytest.raises(RuntimeError, match=r"(?s)--- rank 1.*in fail_on_rank_1.*ValueError: out of luck"):
        run_world(fail_on_rank_1, 2)


def test_a_world_that_hangs_is_given_up():
    with pytest.raises(TimeoutError, match=r"sleep did not end on 1 ranks within 1 s"):
        run_world(sleep, 1, timeout=1)
