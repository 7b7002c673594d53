"""The rooms of each package, and what the imports say of them: ``python tests/rooms.py`` prints both."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

ROOMS = {
    "tnn_runtime": """
        __init__ __main__
        commands
        bench server
        ray
        bulk drawing prometheus
        deployment
        classifier
        replies
        queue
        backends
        engines explain
        bundle
        images answers
        circuits options console
        errors lazy version
        file_kinds installation memory text
    """,
    "tnn_train": """
        __init__ __main__
        commands
        report
        audit
        training
        evaluation
        model
        heads
        data
        distributed messages statistics
        errors fields run_files text_files
    """,
    "tnn_export": """
        __init__ __main__
        commands
        importers bundle triton
        proof
        ensemble
        formats
        lowering
        errors
    """,
}
"""The rooms of each package, a line for each floor: a room imports from the floors below it, and from itself."""


@dataclass(frozen=True)
class Import:
    """An import of a module of ours, as it is written in a file."""

    file: Path
    module: str

    @property
    def importer(self) -> str:
        """The module that the file is."""
        return ".".join(self.file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    @property
    def rooms(self) -> tuple[str, str]:
        """The room of the file, and that of the module."""
        return self.file.relative_to(ROOT).with_suffix("").parts[1], self.module.split(".")[1]


def imports(package: str) -> Iterator[Import]:
    """Yield the imports of ours in a package, those under ``TYPE_CHECKING`` and in functions included."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tnn_"):
                whole = "." not in node.module
                yield from (
                    Import(file, f"{node.module}.{alias.name}" if whole else node.module) for alias in node.names
                )
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("tnn_") for alias in node.names), file


def floors(package: str) -> dict[str, int]:
    """Return the floor of each room, the lowest 0."""
    lines = ROOMS[package].split("\n")[1:-1]
    return {room: len(lines) - number for number, line in enumerate(lines, 1) for room in line.split()}


def arrows(package: str) -> set[tuple[str, str]]:
    """Return which rooms import from which others; the public names and the entry of the command are left out."""
    found = {entry.rooms for entry in imports(package) if entry.module.startswith(f"{package}.")}
    return {(ours, theirs) for ours, theirs in found if ours != theirs and not ours.startswith("__")}


def main() -> None:
    """Print the rooms of each package from the top to the bottom, each with the rooms that it imports from."""
    for package in ROOMS:
        needs: dict[str, set[str]] = {room: set() for room in floors(package) if not room.startswith("__")}
        for ours, theirs in arrows(package):
            needs[ours].add(theirs)
        height: dict[str, int] = {}
        for room in TopologicalSorter(needs).static_order():
            height[room] = 1 + max((height[other] for other in needs[room]), default=0)
        count = sum(map(len, needs.values()))
        print(f"{package}: {len(needs)} rooms on {max(height.values())} floors, {count} arrows")
        for room in sorted(needs, key=lambda room: (-height[room], room)):
            print(f"  {height[room]:2} {room}" + (f" <- {', '.join(sorted(needs[room]))}" if needs[room] else ""))


if __name__ == "__main__":
    main()
