"""Processes that serve the same models, and ask each other: each has a socket in a folder that is theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tnn_runtime.errors import TnnError
from tnn_runtime.server.models import Models, Peers

__all__ = ["Siblings"]

_ENDING = ".socket"


class Siblings(Peers):
    """The other processes of a server.

    Args:
        folder: The folder with the sockets of all; nobody else may enter it.
        number: The number of this process.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._own = folder / f"{number}{_ENDING}"

    @contextlib.asynccontextmanager
    async def talking(self, models: Models) -> AsyncIterator[None]:
        """Answer the questions of the others within, and let models ask them."""
        answers: dict[str, Callable[..., Any]] = {"counted": models.counted_here, "reload": models.reload}

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            what, arguments = pickle.loads(await reader.read())  # noqa: S301 - of a sibling: nobody else can write there
            try:
                found = await asyncio.to_thread(answers[what], *arguments)
            except TnnError as error:
                found = error
            writer.write(pickle.dumps(found))
            writer.close()

        self._own.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(answer, self._own)
        models.peers = self
        try:
            yield
        finally:
            server.close()
            self._own.unlink(missing_ok=True)

    async def ask(self, what: str, *arguments: Any) -> list[Any]:
        """Return what each of the others answers to a question; those that start or end now are left out.

        Raises:
            TnnError: If that is the answer of one.
        """
        others = [path for path in self._folder.glob(f"*{_ENDING}") if path != self._own]
        found = await asyncio.gather(*(self._ask(path, (what, arguments)) for path in others))
        answers = [answer for one in found for answer in one]
        for answer in answers:
            if isinstance(answer, TnnError):
                raise answer
        return answers

    async def _ask(self, path: Path, question: Any) -> list[Any]:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(pickle.dumps(question))
            writer.write_eof()
            content = await reader.read()
            writer.close()
        except OSError:
            return []
        return [pickle.loads(content)] if content else []  # noqa: S301
