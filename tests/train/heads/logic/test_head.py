"""Logic heads against their definition, and what a training does with them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from covering import covering_array
from oracles import logic as oracle
from torch.autograd import gradcheck

from tnn_runtime import UsageError
from tnn_train import ImageData, LogicConfig, LogicHead, ModelConfig, load_checkpoint, train
from tnn_train.__main__ import main as tnn_train
from tnn_train.errors import TrainingError
from tnn_train.heads.description import Sample, Table, Text
from tnn_train.heads.logic.config import AUTO, DISTRIBUTIVE, FIXED, LEARNED, RAW, WARP
from tnn_train.heads.logic.gates import PASS, GateLayer, connections
from tnn_train.heads.logic.section import GATE_NAMES
from tnn_train.heads.logic.thresholds import distributive, evenly_spaced

SIZE, CLASSES = 6, 3
CHOICES = {
    "bits": (1, 3),
    "thresholds": (FIXED, DISTRIBUTIVE, LEARNED),
    "layers": (1, 3),
    "width": (None, 12),
    "parametrization": (RAW, WARP),
    "residual": (0.0, 0.9),
    "temperature": (None, 2.5),
    "wiring": (0, 7),
}
FORMS = [
    LogicConfig(**row)  # type: ignore[arg-type]
    for row in covering_array(CHOICES, 2)
]


def random_head(config: LogicConfig, seed: int = 0) -> tuple[LogicHead, torch.Tensor]:
    """Return a head whose gates and thresholds are random, and embeddings ``[40, SIZE]``."""
    torch.manual_seed(seed)
    x = torch.randn(40, SIZE)
    head = LogicHead(SIZE, CLASSES, config)
    head.start([(x, torch.zeros(40))])
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter += (0.1 if name == "thresholds.values" else 1) * torch.randn_like(parameter)
    return head, x


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_both_forms_are_those_of_the_definition(config: LogicConfig) -> None:
    head, x = random_head(config)
    for is_relaxed in (False, True):
        found = head.train(is_relaxed)(x).detach().numpy()
        np.testing.assert_allclose(found, oracle.logits(head, x.numpy(), is_relaxed=is_relaxed), rtol=1e-5, atol=1e-5)
    head.eval()
    assert torch.equal(head.score(head.switches(x)), head(x))
    assert bool((head.switches(x).abs() <= head.reach(x)).all())


def test_the_table_of_gates_has_their_names() -> None:
    for table, name in enumerate(GATE_NAMES):
        words = {"xnor": "==", "xor": "!=", "not": "1 ^", "and": "&", "or": "|"}
        text = re.sub(r"\bnot ([ab])\b", r"(1 ^ \1)", name)
        for word, operator in words.items():
            text = re.sub(rf"\b{word}\b", operator, text)
        for a in (0, 1):
            for b in (0, 1):
                assert int(eval(text, {"a": a, "b": b})) == table >> 2 * a + b & 1 == oracle.RELAXED[table](a, b), name


@pytest.mark.parametrize("parametrization", [RAW, WARP])
def test_gates_have_the_gradients_of_what_they_compute(parametrization: str) -> None:
    torch.manual_seed(0)
    layer = GateLayer(torch.tensor([0, 2, 1]), torch.tensor([1, 0, 2]), parametrization, 0.0).double()
    h = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, (h,))
    assert gradcheck(
        lambda scores: torch.func.functional_call(layer, {"scores": scores}, (h.detach(),)), (layer.scores,)
    )


def test_a_residual_start_passes_the_first_input_on() -> None:
    for parametrization in (RAW, WARP):
        layer = GateLayer(torch.arange(4), torch.tensor([1, 2, 3, 0]), parametrization, 0.9)
        assert layer.tables().tolist() == [PASS] * 4
        h = torch.tensor([[0.0, 1], [1, 0], [0, 0], [1, 1]])
        assert torch.equal(layer.eval()(h), h)
        near = layer.train()(h)
        assert bool(((near - h).abs() < 0.1001).all())


@pytest.mark.parametrize("inputs", [4, 5, 30])
def test_every_bit_is_used_and_no_pair_twice(inputs: int) -> None:
    width = min(20, inputs * (inputs - 1) // 2)
    left, right = connections(inputs, width, torch.Generator().manual_seed(0))
    assert set(left.tolist()) | set(right.tolist()) == set(range(inputs))
    pairs = {frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    assert len(pairs) == width
    assert all(len(pair) == 2 for pair in pairs)
    again = connections(inputs, width, torch.Generator().manual_seed(0))
    assert torch.equal(left, again[0])
    assert torch.equal(right, again[1])


def test_thresholds_lie_between_values_that_occur() -> None:
    levels = torch.tensor([0.0, 0, 0, 0, 0, 85, 170, 255])
    rows = torch.stack([levels, torch.full((8,), 170.0)], 1)
    golden = (3 - 5**0.5) / 2
    assert evenly_spaced(rows, 1)[0].tolist() == pytest.approx([85 * (1 + golden)])
    found = distributive(rows, 3)
    assert found[0].tolist() == pytest.approx([85 * golden, 85 * (1 + golden), 85 * (2 + golden)])
    assert torch.equal(found[1], evenly_spaced(rows, 3)[1])
    for bits in (1, 2, 5, 9):
        for found in (evenly_spaced(rows, bits), distributive(rows, bits)):
            assert not set(found.flatten().tolist()) & set(rows.flatten().tolist())


def test_thresholds_and_a_backbone_learn_through_bits() -> None:
    head, x = random_head(LogicConfig(thresholds=LEARNED))
    x.requires_grad_()
    head.train()(x)[:, 0].sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert float(head.thresholds.values.grad.abs().sum()) > 0
    fixed, x = random_head(LogicConfig())
    assert "thresholds.values" not in dict(fixed.named_parameters())
    assert fixed.train()(x).requires_grad
    assert fixed.eval()(x.requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 400},
            "width is 400, and the 18 bits of 6 values make 153 pairs, one for each gate; expected at most",
        ),
        ({"width": 6}, "width is 6, too few gates to use the 18 bits of 6 values, two each; expected at least 9, or"),
        (
            {"width": 20},
            "width is 20, which 3 classes cannot share equally; expected a multiple of 3, such as 18 or 21",
        ),
        ({"width": 0}, "width is 0; expected an integer of at least 1"),
        ({"width": 12.0}, "width is 12.0"),
        ({"bits": 0}, "bits is 0"),
        ({"bits": True}, "bits is True"),
        ({"layers": 0}, "layers is 0"),
        ({"layers": 10**6}, "layers is 1000000; expected an integer of at most 256"),
        ({"bits": 10**9}, "bits is 1000000000; expected an integer of at most 256"),
        ({"thresholds": "quantile"}, "unknown thresholds 'quantile'; choose from auto, fixed, distributive, learned"),
        ({"parametrization": "WARP"}, "unknown parametrization 'WARP'; choose from raw, warp"),
        ({"residual": 1.0}, "residual is 1.0; expected a probability from 0 to below 1"),
        ({"residual": 0.3}, "residual is 0.3, with which warp gates start without a gradient"),
        ({"residual": float("nan")}, "residual is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"wiring": -1}, "wiring is -1"),
    ],
)
def test_options_that_do_not_suit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        LogicHead.resolve(LogicConfig(**options), ["a", "b", "c"], SIZE, is_frozen=False)  # type: ignore[arg-type]


def test_too_few_bits_for_the_classes_are_refused() -> None:
    with pytest.raises(
        UsageError, match="bits is 1, and the 2 bits of 2 values make 1 pairs, fewer than the 3 classes"
    ):
        LogicHead.resolve(LogicConfig(bits=1), ["a", "b", "c"], 2, is_frozen=True)


@pytest.mark.parametrize(("size", "classes"), [(2, 2), (24, 7), (64, 10), (784, 10), (3, 100)])
def test_the_default_width_suits_any_embedding_and_resolving_twice_changes_nothing(size: int, classes: int) -> None:
    names = [str(number) for number in range(classes)]
    try:
        once = LogicHead.resolve(LogicConfig(), names, size, is_frozen=False)
    except UsageError:
        assert 3 * size * (3 * size - 1) // 2 < classes
        return
    assert once.width % classes == 0
    assert LogicHead.resolve(once, names, size, is_frozen=False) == once
    assert LogicHead(size, classes, once).config == once


@pytest.mark.parametrize(("is_frozen", "is_pixels"), [(False, False), (True, False), (False, True)])
def test_thresholds_learn_where_embeddings_do(is_frozen: bool, is_pixels: bool) -> None:
    for given in (AUTO, FIXED, DISTRIBUTIVE, LEARNED):
        config = LogicConfig(thresholds=given)
        found = LogicHead.resolve(config, ["a", "b"], SIZE, is_frozen=is_frozen, is_pixels=is_pixels)
        decided = DISTRIBUTIVE if is_frozen or is_pixels else LEARNED
        assert found.thresholds == (decided if given == AUTO else given)
    assert LogicHead(SIZE, CLASSES).config.thresholds == DISTRIBUTIVE


def test_images_that_are_all_the_same_are_refused() -> None:
    head = LogicHead(SIZE, CLASSES)
    with pytest.raises(TrainingError, match="all training images have the same embedding"):
        head.start([(torch.ones(4, SIZE), torch.zeros(4))])


@pytest.mark.parametrize("thresholds", [DISTRIBUTIVE, LEARNED])
def test_a_training_behind_a_backbone_is_validated_as_the_discrete_network(
    data: ImageData, tmp_path: Path, thresholds: str
) -> None:
    model = ModelConfig("tiny", "logic", logic=LogicConfig(thresholds=thresholds))
    run = train(data, tmp_path / "run", model, replace(RECIPE, epochs=2))
    head = load_checkpoint(run.best).model.head
    assert isinstance(head, LogicHead)
    counts = run.test.logits * head.temperature
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    sample = Sample(np.zeros(9, np.int64), data.class_names, lambda: torch.randn(9, head.in_features))
    (section,) = head.describe(sample)
    texts = [block.text for block in section.blocks if isinstance(block, Text)]
    assert any("the discrete network, which is validated and exported" in text for text in texts)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert sum(int(row[1].replace(",", "")) for row in table.rows) == head.config.width
    assert not head.training


def test_pixels_alone_learn_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--data", "digits", "--backbone", "pixels", "--head", "logic", "--logic.width", "640"]
    assert tnn_train([*options, "--epochs", "4", "--augment", "--out", str(run)]) == 0
    accuracy = re.search(r'"test_accuracy": ([0-9.]+)', (run / "results.json").read_text())
    assert accuracy is not None
    assert float(accuracy[1]) > 0.6
    assert "and the discrete network, which is validated and exported" in (run / "report.html").read_text()
    assert tnn_train([*options[:-1], "641", "--out", str(tmp_path / "wide")]) == 1
    assert "--logic.width is 641, which 10 classes cannot share equally" in capsys.readouterr().err
