from __future__ import annotations

import json
import subprocess
import sys

import mutations
import pytest

pytest.importorskip("resource", reason="memory is limited by POSIX means")


@pytest.mark.slow
def test_a_damaged_bundle_is_refused_in_one_line_or_gives_the_logits_that_it_gave() -> None:
    verdicts: dict[int, tuple[str, str]] = {}
    while len(verdicts) < len(mutations.ORDER):
        command = [sys.executable, mutations.__file__, str(len(verdicts)), str(len(mutations.ORDER))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line.split("\t") for line in result.stdout.splitlines()]
        assert lines, result.stderr
        for number, kind, verdict in lines:
            verdicts[int(number)] = (kind, json.loads(verdict) if verdict else f"died: {result.stderr[-2000:]}")
    assert len(verdicts) == 2000
    wrong = {number: verdict for number, verdict in verdicts.items() if verdict[1] not in ("refused", "intact")}
    assert wrong == {}
    for kind, (count, _) in mutations.KINDS.items():
        refused = sum(verdict == (kind, "refused") for verdict in verdicts.values())
        assert refused > count / 3, kind
