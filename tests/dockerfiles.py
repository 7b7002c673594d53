"""What a Dockerfile says, and its steps without a builder: in a folder that stands for the root of the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dockerfile_parse import DockerfileParser

__all__ = ["Stage", "context", "stages"]


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile.

    Args:
        instructions: Their names and values, in their order.
    """

    instructions: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """Return what follows an instruction wherever it stands."""
        return [value for instruction, value in self.instructions if instruction == name]

    def command(self, name: str) -> list[str]:
        """Return a command that is given as a JSON list, as Docker runs it: without a shell."""
        (value,) = self.values(name)
        return list(json.loads(value[value.index("[") :]))

    def environment(self, root: Path) -> dict[str, str]:
        """Return the variables of ENV, with the paths of a root."""
        (words,) = map(shlex.split, self.values("ENV"))
        found = dict(word.split("=", 1) for word in words)
        return {name: _rooted(value, root).replace("$PATH", os.environ["PATH"]) for name, value in found.items()}

    def build(self, root: Path, files: Path) -> None:
        """Follow COPY and RUN as Docker does, but with the paths of the image under a root.

        Args:
            root: A folder.
            files: The folder that is sent to the builder; see `context`.

        Raises:
            CalledProcessError: If a step fails.
        """
        arguments = dict(value.split("=", 1) for value in self.values("ARG"))
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**ours, **arguments, "PATH": f"{Path(sys.executable).parent}:{ours['PATH']}"}
        workdir = root
        for name, value in self.instructions:
            if name == "WORKDIR":
                workdir = Path(_rooted(value, root))
                workdir.mkdir(parents=True)
            elif name == "COPY":
                assert value == ". ."
                for file in context(files):
                    (workdir / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(files / file, workdir / file)
            elif name == "RUN":
                command = ["sh", "-ec", _rooted(re.sub(r"--mount=\S+", "", value), root)]
                subprocess.run(command, cwd=workdir, env=environment, check=True, capture_output=True, text=True)


def stages(path: Path) -> list[Stage]:
    """Read the stages of a Dockerfile."""
    with path.open("rb") as file:
        found = DockerfileParser(fileobj=file).structure
    starts = [number for number, step in enumerate(found) if step["instruction"] == "FROM"]
    return [
        Stage([(step["instruction"], step["value"]) for step in found[start:end]])
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]


def context(folder: Path) -> list[str]:
    """Return the files that ``.dockerignore`` lets through to the builder, if it starts by ignoring all."""
    first, *lines = (folder / ".dockerignore").read_text().split()
    assert first == "*"
    return sorted(
        file
        for number, line in enumerate(lines)
        if line.startswith("!")
        for file in _files(folder, line[1:])
        if not any(_matches(later, file) for later in lines[number + 1 :] if not later.startswith("!"))
    )


def _files(folder: Path, name: str) -> Iterator[str]:
    path = folder / name
    yield from (str(file.relative_to(folder)) for file in [path, *path.rglob("*")] if file.is_file())


def _matches(pattern: str, path: str) -> bool:
    expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(f"{expression}(?:/.*)?", path) is not None


def _rooted(text: str, root: Path) -> str:
    """Put a root before all absolute paths."""
    return re.sub(r"(?<![^\s\"'=:])/(?=\w)", f"{root}/", text)
