"""Bytes that are nearly HTTP, sent to a server that runs: it answers on, and its log has nothing of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conftest import FIXTURES
from fuzzing_streams import send_all
from served import NO_DELAY, serving


def test_whatever_comes_the_server_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, f"p={FIXTURES / 'bundle-v5'}", "--device", "cpu", *NO_DELAY) as served:
        statuses = asyncio.run(send_all(served.http, 0, 1000))
        assert {200, 400, 404} <= set(statuses)
        assert served.get("/v2/health/ready").status_code == 200
        assert served.end() == 0
        log = served.log.read_text().splitlines()
    assert len(log) == 3, log  # that it runs, that it ends, and that it drains
