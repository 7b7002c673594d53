from __future__ import annotations

import os
from pathlib import Path

import pytest

from tnn_runtime.queue import cores


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores, whose control groups a test makes."""
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_a_quota_the_affinity_counts(cgroups: Path) -> None:
    assert cores.usable_cores() == 16
    write(cgroups, membership="0::/service", cpu__max="max 100000")
    assert cores.usable_cores() == 16


@pytest.mark.parametrize(("quota", "expected"), [("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 16)])
def test_a_quota_of_version_2(cgroups: Path, quota: str, expected: int) -> None:
    write(cgroups, membership="0::/kube/service")
    write(cgroups / "kube" / "service", cpu__max=quota)
    assert cores.usable_cores() == expected


def test_the_smallest_quota_of_all_groups_around_counts(cgroups: Path) -> None:
    write(cgroups, membership="0::/kube/service", cpu__max="800000 100000")
    write(cgroups / "kube", cpu__max="300000 100000")
    write(cgroups / "kube" / "service", cpu__max="max 100000")
    assert cores.usable_cores() == 3


def test_a_container_sees_its_own_group_as_the_root(cgroups: Path) -> None:
    write(cgroups, membership="0::/docker/of-the-host", cpu__max="400000 100000")
    assert cores.usable_cores() == 4


def test_a_quota_of_version_1(cgroups: Path) -> None:
    write(cgroups, membership="5:memory:/x\n4:cpu,cpuacct:/service\n0::/")
    write(cgroups / "cpu,cpuacct" / "service", cpu__cfs_quota_us="600000", cpu__cfs_period_us="100000")
    assert cores.usable_cores() == 6
    write(cgroups / "cpu,cpuacct" / "service", cpu__cfs_quota_us="-1")
    assert cores.usable_cores() == 16


def test_this_machine() -> None:
    assert 1 <= cores.usable_cores() <= (os.cpu_count() or 1)
