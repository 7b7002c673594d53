from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnn_runtime import InputError, ResourcesExhausted
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.images.reading import read_each, read_images

RGB = Preprocessing(6, 4, 3, (0.5,) * 3, (0.5,) * 3)


def test_images_are_those_that_one_thread_reads(photos: Path) -> None:
    files = find_images(photos) * 5
    assert np.array_equal(read_images(files, RGB), RGB.batch(files))


def test_results_come_in_order_with_errors_in_their_places() -> None:
    def read(index: int) -> int:
        if index % 7 == 3:
            raise InputError(str(index))
        return index

    found = [int(str(result)) for result in read_each(read, 10_000)]
    assert found == list(range(10_000))


@pytest.mark.parametrize(("count", "listed"), [(1, 1), (2, 2), (20, 20), (21, 20), (40, 20)])
def test_all_that_cannot_be_used_is_listed(count: int, listed: int, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    files = find_images(tmp_path / "photos")
    for file in files[:count]:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        read_images(files, RGB)
    message = str(caught.value)
    assert message.count("cannot be decoded (image file is truncated)") == listed
    assert all(str(file) in message for file in files[:listed])
    assert (f"; and {count - listed} more; replace or remove them" in message) == (count > listed)
    assert message.startswith(f"{count} of 40 files cannot be used: ") == (count > 1)


@pytest.mark.parametrize(
    "fault", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "no memory")]
)
@pytest.mark.parametrize("step", ["tnn_runtime.images.files._stream", "PIL.Image.open", "PIL.Image.Image.convert"])
def test_a_fault_of_the_machine_is_not_told_of_a_file(
    fault: Exception, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise fault

    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    monkeypatch.setattr(step, fail)
    with pytest.raises(ResourcesExhausted):
        read_images([tmp_path / "0.png"], RGB)
