from __future__ import annotations

import itertools
import multiprocessing
import pickle
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photos
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from waiting import until

from tnn_runtime import InputError, UsageError
from tnn_train import ImageData, load_data
from tnn_train.data import AugmentedSet, EpochBatches, ImageSet, evaluation_loader, training_loader
from tnn_train.data import load as load_module

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

NAMES = ("crop", "flip", "randaugment")


def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    world_size = draw(st.integers(1, 4))
    count = draw(st.integers(2 * world_size, 100))
    return count, draw(st.integers(2 * world_size, 30)), world_size


SIZES = st.composite(sizes)()
SEEDS, EPOCHS = st.integers(0, 2**32 - 1), st.integers(0, 1000)


class TestEpochBatches:
    @settings(max_examples=50)
    @given(SIZES, SEEDS, EPOCHS)
    def test_an_epoch_is_a_permutation_that_the_processes_share(
        self, size: tuple[int, int, int], seed: int, epoch: int
    ) -> None:
        count, batch_size, world_size = size
        whole = EpochBatches(count, batch_size, seed)
        parts = [EpochBatches(count, batch_size, seed, rank, world_size) for rank in range(world_size)]
        for batches in (whole, *parts):
            batches.set_position(epoch)
        seen = []
        shares = list(zip(*parts, strict=True))
        for together, share in zip(whole, shares, strict=False):
            assert len(together) <= batch_size
            assert all(len(keys) >= 2 for keys in share)
            assert list(itertools.chain(*share)) == together
            seen += together
        assert all(key_epoch == epoch for key_epoch, _ in seen)
        indices = [index for _, index in seen]
        assert len(set(indices)) == len(indices)
        left_out = count - len(indices)
        assert left_out == (count % batch_size if count % batch_size < 2 * world_size else 0)
        assert set(indices) <= set(range(count))
        assert len(shares) == len(parts[0])
        assert len(list(whole)) == len(whole)

    @settings(max_examples=50)
    @given(SIZES, SEEDS, EPOCHS)
    def test_each_part_can_have_the_image_before_it(self, size: tuple[int, int, int], seed: int, epoch: int) -> None:
        count, batch_size, world_size = size
        for rank in range(world_size):
            parts = EpochBatches(count, batch_size, seed, rank, world_size)
            longer = EpochBatches(count, batch_size, seed, rank, world_size, with_neighbour=True)
            for batches in (parts, longer):
                batches.set_position(epoch)
            for batch, (part, (before, *others)) in enumerate(zip(parts, longer, strict=True)):
                assert others == part
                assert [index for _, index in part] == parts.part(batch).tolist()
                whole = parts.whole(batch, batch + 1).tolist()
                assert before == (epoch, whole[whole.index(part[0][1]) - 1])

    @settings(max_examples=50)
    @given(SIZES, SEEDS, EPOCHS, st.data())
    def test_going_on_in_the_middle(
        self, size: tuple[int, int, int], seed: int, epoch: int, choice: st.DataObject
    ) -> None:
        count, batch_size, world_size = size
        batches = EpochBatches(count, batch_size, seed, world_size - 1, world_size)
        batches.set_position(epoch)
        whole = list(batches)
        start = choice.draw(st.integers(0, len(batches)))
        again = EpochBatches(count, batch_size, seed, world_size - 1, world_size)
        again.set_position(epoch, start)
        assert list(again) == whole[start:]
        assert len(again) == len(whole)

    @settings(max_examples=20)
    @given(SEEDS, EPOCHS)
    def test_seed_and_epoch_decide_the_order(self, seed: int, epoch: int) -> None:
        assume(seed != epoch)

        def order(seed: int, epoch: int) -> list[int]:
            batches = EpochBatches(60, 60, seed)
            batches.set_position(epoch)
            return [index for _, index in next(iter(batches))]

        assert order(seed, epoch) == order(seed, epoch)
        assert order(seed, epoch) != order(seed, epoch + 1)
        assert order(seed, epoch) != order(epoch, seed)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((1, 2, 0), "the number of training images is 1; expected at least 2"),
            ((100, 3, 0, 0, 2), "batch_size is 3; expected at least 4, for batch norm two a process"),
            ((100, 8, 0, 2, 2), "rank is 2 of 2 processes; expected 0 to 1"),
        ],
    )
    def test_bad_input(self, arguments: tuple[int, ...], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            EpochBatches(*arguments)

    @pytest.mark.parametrize(("epoch", "batch"), [(-1, 0), (0, -1), (0, 14)])
    def test_a_position_that_is_not_there(self, epoch: int, batch: int) -> None:
        with pytest.raises(UsageError, match=f"there is no batch {batch} in epoch {epoch}; expected 0 to 13"):
            EpochBatches(100, 8, 0).set_position(epoch, batch)


@pytest.fixture
def lazy(photos: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """The photos, decoded when they are needed."""
    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    return load_data(photos)


def run(images: ImageSet, epochs: list[tuple[int, int]], workers: int | None) -> list[tuple[Tensor, Tensor]]:
    batches = EpochBatches(len(images), 8, seed=3)
    loader = training_loader(AugmentedSet(images, NAMES, seed=3), batches, workers)
    out = []
    for epoch, batch in epochs:
        batches.set_position(epoch, batch)
        out += [tuple(batch) for batch in loader]
    return out


def equal(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> bool:
    return len(ours) == len(theirs) > 0 and all(
        torch.equal(one, other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True)
    )


def has_yet_to_see_a_sigterm(process: multiprocessing.process.BaseProcess) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


class TestTraining:
    @pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGINT) * 3])
    def test_workers_are_ended_by_their_own_process_alone(self, numbers: tuple[int, ...], data: ImageData) -> None:
        """As in a group of processes that another one sends signals to."""
        before = set(multiprocessing.active_children())
        batches = EpochBatches(len(data.train), 2, seed=3)
        loader = training_loader(AugmentedSet(data.train, NAMES, seed=3), batches, 2)
        count = 0
        for _ in loader:
            workers = set(multiprocessing.active_children()) - before
            assert len(workers) == 2
            for number, worker in itertools.product(numbers, workers):
                subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
            count += 1
        assert count == len(batches)
        for worker in workers:
            until(lambda worker=worker: not has_yet_to_see_a_sigterm(worker))  # type: ignore[misc]  # or they would be one
            worker.terminate()
            worker.join()
            assert worker.exitcode == 0

    def test_batches_have_their_form(self, data: ImageData) -> None:
        for images, labels in run(data.train, [(0, 0)], None):
            assert images.dtype == torch.uint8
            assert images.shape[1:] == data.preprocessing.shape
            assert labels.dtype == torch.int64
            assert len(images) == len(labels)

    def test_what_batches_hold_depends_on_no_worker_and_no_past(self, data: ImageData, lazy: ImageData) -> None:
        """Whole epochs, an epoch cut short, and one that begins in its middle."""
        alone = run(data.train, [(1, 0), (2, 0)], 0)
        assert not equal(alone[: len(alone) // 2], alone[len(alone) // 2 :])
        assert equal(run(lazy.train, [(1, 0), (2, 0)], 2), alone)
        assert equal(run(lazy.train, [(2, 1), (1, 2)], 1), alone[len(alone) // 2 + 1 :] + alone[2 : len(alone) // 2])

    def test_an_epoch_that_was_broken_off_leaves_nothing_behind(self, lazy: ImageData) -> None:
        batches = EpochBatches(len(lazy.train), 4, seed=0)
        loader = training_loader(AugmentedSet(lazy.train, NAMES, seed=0), batches, workers=2)
        for _ in loader:
            break
        batches.set_position(5)
        again = [tuple(batch) for batch in loader]
        batches.set_position(5)
        assert equal(again, [tuple(batch) for batch in loader])
        assert len(again) == len(loader) == len(batches)

    def test_the_generator_of_the_training_is_left_alone(self, data: ImageData, lazy: ImageData) -> None:
        before = torch.get_rng_state()
        run(data.train, [(0, 0)], 0)
        run(lazy.train, [(0, 0)], 1)
        list(evaluation_loader(data.test, 4))
        assert torch.equal(torch.get_rng_state(), before)

    def test_skipped_images_are_not_decoded(self, lazy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded = []
        original = ImageSet.decoded
        monkeypatch.setattr(ImageSet, "decoded", lambda images, index: decoded.append(index) or original(images, index))
        run(lazy.train, [(0, 2)], 0)
        assert len(decoded) == len(lazy.train) - 16

    def test_workers_are_for_images_that_are_not_in_memory(self, data: ImageData, lazy: ImageData) -> None:
        kept, decoding = (
            training_loader(AugmentedSet(images, (), 0), EpochBatches(len(images), 8, 0), None)
            for images in (data.train, lazy.train)
        )
        assert kept.num_workers == 0
        assert 1 <= decoding.num_workers <= 4
        assert decoding.persistent_workers

    def test_a_set_can_be_sent_to_a_process(self, lazy: ImageData) -> None:
        augmented = AugmentedSet(lazy.train, NAMES, seed=0)
        assert torch.equal(pickle.loads(pickle.dumps(augmented))[1, 2][0], augmented[1, 2][0])


class TestEvaluation:
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    def test_every_image_comes_once_and_in_order(self, data: ImageData, world_size: int) -> None:
        for rank in range(world_size):
            batches = list(evaluation_loader(data.test, 3, rank, world_size))
            assert all(len(images) <= 3 for images, _ in batches)
            pixels = torch.cat([images for images, _ in batches]).numpy()
            labels = torch.cat([labels for _, labels in batches]).numpy()
            assert np.array_equal(pixels, data.test.pixels[rank::world_size])
            assert np.array_equal(labels, data.test.labels[rank::world_size])

    def test_more_processes_than_images(self, data: ImageData) -> None:
        assert list(evaluation_loader(data.test, 3, rank=20, world_size=21)) == []

    def test_images_that_are_not_in_memory(self, data: ImageData, lazy: ImageData) -> None:
        pixels = torch.cat([images for images, _ in evaluation_loader(lazy.test, 3)]).numpy()
        assert np.array_equal(pixels, data.test.pixels)


class TestBrokenImages:
    @pytest.fixture
    def broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
        """A set too large for the memory with an image that is truncated after the start."""
        monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
        data = load_data(draw_photos(tmp_path / "photos"))
        for part in (data.train, data.test):
            path = part.sources[3]
            path.write_bytes(path.read_bytes()[:150])
        return data

    @pytest.mark.parametrize("workers", [0, 2])
    def test_training_names_the_file_in_one_line(self, broken: ImageData, workers: int) -> None:
        batches = EpochBatches(len(broken.train), 4, seed=0)
        loader = training_loader(AugmentedSet(broken.train, ("flip",), seed=0), batches, workers)
        for _ in range(2):
            with pytest.raises(InputError) as caught:
                list(loader)
            assert str(caught.value).startswith(f"{broken.train.sources[3]} cannot be decoded")
            assert "\n" not in str(caught.value)

    def test_so_does_evaluation(self, broken: ImageData) -> None:
        with pytest.raises(InputError) as caught:
            list(evaluation_loader(broken.test, 4))
        assert str(caught.value).startswith(f"{broken.test.sources[3]} cannot be decoded")
        assert "\n" not in str(caught.value)
