"""Memory goes back to the system when a bundle is exchanged."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
from conftest import FIXTURES

from tnn_runtime import Deployment
from tnn_runtime.memory import return_memory


def test_a_reload_returns_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=trimmed.append))
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as deployment:
        assert not trimmed
        deployment.reload()
        assert trimmed == [0]


@pytest.mark.parametrize("library", [OSError("there is none"), SimpleNamespace()])
def test_other_c_libraries_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> object:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    return_memory()
