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
