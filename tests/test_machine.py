"""memdec_edge/machine.py: what a process may use, under the limits of its cgroups."""

import os
from pathlib import Path

import pytest

from memdec_edge import machine


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cgroup of this process, two levels deep and without limits."""
    folder = tmp_path / "cgroup" / "system" / "service"
    folder.mkdir(parents=True)
    (tmp_path / "own").write_text("5:devices:/elsewhere\n0::/system/service\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OF_THIS_PROCESS", tmp_path / "own")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return folder


def test_without_a_quota_every_cpu_of_the_affinity_is_usable(service: Path) -> None:
    (service / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cpus() == 16


@pytest.mark.parametrize(("quota", "cpus"), [(250_000, 3), (100_000, 1), (20_000, 1), (9_900_000, 16)])
def test_a_quota_bounds_the_cpus_wherever_it_stands(service: Path, quota: int, cpus: int) -> None:
    for folder in (service, service.parent, service.parents[1]):
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        assert machine.usable_cpus() == cpus
        (folder / "cpu.max").write_text("max 100000\n")


def test_a_machine_without_cgroups_has_its_affinity(service: Path) -> None:
    machine.OF_THIS_PROCESS.unlink()
    assert machine.usable_cpus() == 16


def test_free_memory_is_what_the_system_has_and_the_cgroups_allow(service: Path, tmp_path: Path) -> None:
    machine.MEMORY.write_text("MemTotal:  9000 kB\nMemAvailable:    7000 kB\n")
    assert machine.free_memory() == 7000 * 1024
    (service / "memory.max").write_text("max\n")
    (service / "memory.current").write_text("999999\n")
    assert machine.free_memory() == 7000 * 1024
    (service.parent / "memory.max").write_text("3000000\n")
    (service.parent / "memory.current").write_text("1000000\n")
    (service.parent / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert machine.free_memory() == 2_500_000  # a file cache makes room when it is needed
    (service.parent / "memory.current").write_text("9000000\n")
    assert machine.free_memory() == 0


def test_where_nothing_says_so_free_memory_is_unknown(service: Path) -> None:
    assert machine.free_memory() is None
