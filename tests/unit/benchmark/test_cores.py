"""Which cores instances get, on machines of every make."""

from __future__ import annotations

import os

import pytest

from inc_torch import BenchmarkConfig
from inc_torch.benchmark._cores import Core, allowed_cpus, cpu_quota, parse_cpus, physical_cores, place
from inc_torch.core.errors import ConfigError, InexactWarning


def machine(folder, threads, nodes=None):
    """Describe a machine as the kernel does: ``{cpu: (package, core)}`` and ``{node: list of cpus}``."""
    for cpu, (package, core) in threads.items():
        topology = folder / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "core_id").write_text(f"{core}\n")
    for node, cpus in (nodes or {}).items():
        (folder / f"node/node{node}").mkdir(parents=True)
        (folder / f"node/node{node}/cpulist").write_text(f"{cpus}\n")
    return folder


def cores(count, node=0):
    return [Core(node, node, number, 10 * node + number) for number in range(count)]


def test_hyperthreads_of_a_core_count_once_and_the_first_allowed_one_stands_for_it(tmp_path):
    system = machine(tmp_path, {0: (0, 0), 1: (0, 1), 2: (0, 0), 3: (0, 1)})
    assert [core.cpu for core in physical_cores({0, 1, 2, 3}, system)] == [0, 1]
    assert [core.cpu for core in physical_cores({1, 2, 3}, system)] == [2, 1]
    assert [core.cpu for core in physical_cores({3}, system)] == [3]


def test_equal_numbers_in_two_sockets_are_two_cores(tmp_path):
    system = machine(tmp_path, {0: (0, 0), 1: (1, 0)}, {0: "0", 1: "1"})
    assert physical_cores({0, 1}, system) == (Core(0, 0, 0, 0), Core(1, 1, 0, 1))


def test_without_a_description_each_thread_is_a_core(tmp_path):
    assert [core.cpu for core in physical_cores({4, 2}, tmp_path)] == [2, 4]


def test_the_allowed_set_is_that_of_the_process():
    assert allowed_cpus() == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0-1,8,10-11", (0, 1, 8, 10, 11)), ("", ())]
)
def test_lists_of_the_kernel_are_read(text, cpus):
    assert parse_cpus(text) == cpus


class TestPlace:
    def test_shares_all_cores_equally(self):
        placed = place(BenchmarkConfig(num_of_instance=3), cores(7), clip=False)
        assert [one.cpus for one in placed] == [(0, 1), (2, 3), (4, 5)]
        assert [one.threads for one in placed] == [2, 2, 2]

    def test_gives_as_many_as_are_asked_for(self):
        config = BenchmarkConfig(num_of_instance=2, cores_per_instance=1, intra_num_of_threads=4)
        placed = place(config, cores(7), clip=False)
        assert [(one.cpus, one.threads) for one in placed] == [((0,), 4), ((1,), 4)]

    def test_keeps_an_instance_within_a_node(self):
        placed = place(BenchmarkConfig(num_of_instance=2, cores_per_instance=2), cores(3) + cores(3, 1), clip=False)
        assert [one.cpus for one in placed] == [(0, 1), (10, 11)]
        assert all(one.spans_nodes for one in placed)

    def test_what_is_left_of_nodes_is_used_last(self):
        placed = place(BenchmarkConfig(num_of_instance=3, cores_per_instance=2), cores(3) + cores(3, 1), clip=False)
        assert [one.cpus for one in placed] == [(0, 1), (10, 11), (2, 12)]

    def test_refuses_more_than_there_are_with_the_numbers(self):
        with pytest.raises(ConfigError) as caught:
            place(BenchmarkConfig(num_of_instance=7, cores_per_instance=4), cores(8), clip=False)
        assert str(caught.value) == (
            "BenchmarkConfig.num_of_instance=7 with cores_per_instance=4 need 28 physical cores, and this process may "
            "use 8. Ask for less, such as num_of_instance=7 and cores_per_instance=1, or pass clip=True (--clip) to "
            "take what there is."
        )

    @pytest.mark.parametrize(
        ("asked", "given"),
        [((7, 4), (7, 1)), ((2, 8), (2, 4)), ((9, None), (8, 1)), ((9, 2), (8, 1)), ((1, 99), (1, 8))],
    )
    def test_clip_takes_what_there_is_and_says_so(self, asked, given):
        config = BenchmarkConfig(num_of_instance=asked[0], cores_per_instance=asked[1])
        with pytest.warns(InexactWarning, match=rf"may use 8: {given[0]} x {given[1]} are used, as clip=True"):
            placed = place(config, cores(8), clip=True)
        assert (len(placed), {len(one.cpus) for one in placed}) == (given[0], {given[1]})
        assert len({cpu for one in placed for cpu in one.cpus}) == given[0] * given[1]


@pytest.mark.parametrize(("text", "quota"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None)])
def test_the_limit_of_a_container_is_read(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == quota
