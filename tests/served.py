"""The command that serves bundles, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(log: Path, *words: object, http: str = "127.0.0.1:0") -> Iterator[str]:
    """Run the command, and yield where it serves; it ends with 0."""
    command = [sys.executable, "-m", "tnn_runtime", "serve", *map(str, words), "--http", http]
    command += ["--device", "cpu", "--threads", "1", "--ready-delay-s", "0"]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server:
        assert server.stdout is not None
        try:
            found = next(filter(None, (re.match(r"http://\S+", line) for line in server.stdout)), None)
            assert found is not None, log.read_text()
            yield found[0]
        finally:
            server.terminate()
            code = server.wait()
    assert code == 0, log.read_text()
