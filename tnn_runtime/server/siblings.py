"""Processes that serve the same models, and ask each other: each has a socket in a folder that is theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from tnn_runtime.errors import NotAnswered, TnnError
from tnn_runtime.server.models import Models, Peers

__all__ = ["Siblings"]

_LOG = logging.getLogger(__name__)
_ENDING = ".socket"
_PATIENCE_S = {"counted": 2.0, "reload": 600.0}
"""How long an answer to each question may take, in seconds."""


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

        async def counted() -> Any:
            return await asyncio.to_thread(models.counted_here)

        answers: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "counted": counted,
            "reload": models.reload_async,
        }

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            what, arguments = pickle.loads(await reader.read())  # noqa: S301 - of a sibling: nobody else can write there
            try:
                found = await answers[what](*arguments)
            except TnnError as error:
                found = error
            except Exception as error:
                _LOG.exception("another process of the server asked for what failed here")
                found = TnnError(f"a process of this server failed ({error}); its log has more")
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
        """Return what each of the others answers to a question; those that have not started yet are left out.

        Raises:
            NotAnswered: If one does not answer in time.
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
            async with asyncio.timeout(_PATIENCE_S[question[0]]):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(pickle.dumps(question))
                    writer.write_eof()
                    return [pickle.loads(await reader.read())]  # noqa: S301 - of a sibling, as above
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):  # of one that was killed, or ends
            return []
        except (OSError, EOFError, pickle.UnpicklingError):
            raise NotAnswered("a process of this server does not answer; ask again later") from None
