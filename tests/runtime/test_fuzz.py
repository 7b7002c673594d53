"""Damaged images and requests: each is answered, or refused with a documented error."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import fuzzing
import fuzzing_server
import pytest

pytest.importorskip("resource", reason="memory is limited by POSIX means")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "kind", "count"),
    [
        (fuzzing, "images", 4_000),
        (fuzzing, "calls", 1_000),
        (fuzzing_server, "http", 1_000),
        (fuzzing_server, "grpc", 600),
        pytest.param(fuzzing, "images", 40_000, marks=pytest.mark.exhaustive),
        pytest.param(fuzzing, "calls", 10_000, marks=pytest.mark.exhaustive),
        pytest.param(fuzzing_server, "http", 20_000, marks=pytest.mark.exhaustive),
        pytest.param(fuzzing_server, "grpc", 20_000, marks=pytest.mark.exhaustive),
    ],
)
def test_whatever_comes_is_answered_or_refused(program: ModuleType, kind: str, count: int) -> None:
    command = [sys.executable, str(program.__file__), kind, "0", str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", timeout=1800)
    *lines, last = result.stdout.splitlines()
    assert result.returncode == 0, (last, result.stderr[-3000:])
    verdicts = {int(number): json.loads(verdict) for number, verdict in (line.split("\t") for line in lines)}
    assert sorted(verdicts) == list(range(count))
    assert {number: verdict for number, verdict in verdicts.items() if verdict not in ("answered", "refused")} == {}
    for verdict in ("answered", "refused"):
        assert list(verdicts.values()).count(verdict) > count / 10
    left = json.loads(last)
    assert left["threads"] == []
    assert left["files"] == 0
    assert left["mib"] < 1024
