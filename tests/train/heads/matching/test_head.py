"""The similarity matching head against its definition, and in training."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from forms import CLASSES
from matching_heads import SIZE, random_matching
from oracles import matching as oracle
from torch.nn import functional

from tnn_runtime import UsageError
from tnn_train import ImageData, MatchingConfig, ModelConfig, load_checkpoint, train
from tnn_train.__main__ import main
from tnn_train.errors import TrainingError
from tnn_train.fields import FieldError
from tnn_train.heads.matching.head import MatchingHead
from tnn_train.training.identity import identity, refuse_other
from tnn_train.training.trainer import Trainer

EACH = pytest.mark.parametrize("config", oracle.forms(), ids=oracle.name)
LABELS = torch.arange(9) % CLASSES


@EACH
def test_logits_are_those_of_the_definition(config: MatchingConfig) -> None:
    head, x = random_matching(config)
    expected = oracle.logits(head, x.double().numpy())
    for mode in (False, True):
        head.train(mode)
        head.scaling.watch = lambda x: None  # type: ignore[method-assign]
        with torch.no_grad():
            np.testing.assert_allclose(head(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        units = head.eval().evidence(x)["units"]
        np.testing.assert_allclose(units, oracle.activities(head, x.double().numpy()), rtol=1e-4, atol=1e-4)
        assert torch.equal(head.feature_values(x), units)


TARGETS = {
    "plain": (LABELS, None, 0.0),
    "weighted": (LABELS, torch.tensor([0.5, 2.0, 1.0, 3.0]), 0.0),
    "smoothed": (LABELS, None, 0.2),
    "blended": (torch.softmax(torch.randn(9, CLASSES, generator=torch.Generator().manual_seed(0)), 1), None, 0.0),
    "blended and weighted": (
        torch.softmax(torch.randn(9, CLASSES, generator=torch.Generator().manual_seed(1)), 1),
        torch.tensor([0.5, 2.0, 1.0, 3.0]),
        0.1,
    ),
}


@EACH
@pytest.mark.parametrize("kind", TARGETS)
def test_the_gradients_are_the_hebbian_and_anti_hebbian_rules(config: MatchingConfig, kind: str) -> None:
    targets, weight, smoothing = TARGETS[kind]
    head, x = random_matching(config)
    x.requires_grad_()
    loss = head.loss(x, torch.zeros(9, CLASSES), targets, weight, smoothing)
    assert loss.item() == pytest.approx(
        functional.cross_entropy(torch.zeros(9, CLASSES), targets, weight, label_smoothing=smoothing).item()
    )
    loss.backward()
    assert x.grad is None
    shares = targets.double().numpy() if targets.is_floating_point() else np.eye(CLASSES)[targets.numpy()]
    counts = np.ones(9) if weight is None else shares @ weight.double().numpy()
    counts /= 9 if targets.is_floating_point() else counts.sum()
    smoothed = shares * (1 - smoothing) + smoothing / CLASSES
    for name, expected in oracle.rules(head, x.detach().double().numpy(), smoothed, counts).items():
        np.testing.assert_allclose(getattr(head, name).grad, expected, rtol=1e-3, atol=1e-4, err_msg=name)
    assert head.classifier.weight.grad is None


@pytest.mark.parametrize("end_to_end", [False, True])
def test_the_gradient_of_the_classifier_reaches_the_circuit_or_not(end_to_end: bool) -> None:
    head, x = random_matching(MatchingConfig(5, end_to_end=end_to_end))
    x.requires_grad_()
    functional.cross_entropy(head.train()(x), LABELS).backward()
    assert head.classifier.weight.grad is not None
    for values in (x, head.encoder, head.lateral):
        assert (values.grad is not None and bool(values.grad.any())) == end_to_end


def descended(config: MatchingConfig, x: torch.Tensor) -> MatchingHead:
    """Return a head whose circuit has learned from the objective alone, by the published rules."""
    torch.manual_seed(0)
    head = MatchingHead(SIZE, 2, config).train()
    targets = torch.zeros(len(x), dtype=torch.int64)
    head.start([(x, targets)])
    rates = [{"params": [p], "lr": 0.03 * head.rates().get(name, 1.0)} for name, p in head.named_parameters()]
    optimizer = torch.optim.SGD(rates)
    for _ in range(600):
        optimizer.zero_grad()
        head.loss(x, torch.zeros(len(x), 2), targets, None, 0.0).backward()
        optimizer.step()
    return head.eval()


@pytest.mark.parametrize("regularization", ["weight", "whiten"])
def test_a_linear_circuit_finds_the_principal_subspace(regularization: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(400, SIZE) @ torch.diag(torch.tensor([3.0, 2.5, 2.0, 0.3, 0.2, 0.1])) + 5
    config = MatchingConfig(3, "linear", leak=0.0, regularization=regularization, objective=1.0, end_to_end=False)
    head = descended(replace(config, tolerance=1e-4), x)
    with torch.no_grad():
        units = head.activities(x).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(oracle.inputs(head, x.double().numpy()).T, bias=True))
    if regularization == "weight":
        rows = np.linalg.svd(oracle.array(head.projection), full_matrices=False)[2]
        np.testing.assert_allclose(np.abs(np.linalg.svd(rows @ vectors[:, 3:])[1]), 1, atol=1e-2)
        np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(units.T, bias=True)), values[3:], rtol=2e-2)
    else:
        np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(units.T, bias=True)), 1, rtol=5e-2)


def test_labels_bring_classes_together() -> None:
    torch.manual_seed(2)
    labels = torch.arange(300) % 3
    x = torch.randn(300, SIZE) + 0.7 * torch.eye(SIZE)[labels]
    gaps = []
    for supervision in (0.0, 1.0):
        config = MatchingConfig(4, supervision=supervision, objective=1.0, end_to_end=False)
        head = MatchingHead(SIZE, 3, config).train()
        head.start([(x, labels)])
        optimizer = torch.optim.SGD(head.parameters(), 0.03)
        for _ in range(300):
            optimizer.zero_grad()
            head.loss(x, torch.zeros(300, 3), labels, None, 0.0).backward()
            optimizer.step()
        with torch.no_grad():
            units = functional.normalize(head.eval().activities(x), dim=1)
        alike = units @ units.T
        same = labels[:, None] == labels
        gaps.append(float(alike[same].mean() - alike[~same].mean()))
    assert gaps[1] > gaps[0] + 0.05, gaps


def test_embeddings_are_centred_and_scaled_at_the_start_and_followed() -> None:
    head = MatchingHead(SIZE, CLASSES, MatchingConfig(5))
    x = 100 * torch.randn(50, SIZE) + 1000
    head.start([(x[:20], LABELS), (x[20:], LABELS)])
    scaled = head.scaling(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(SIZE), atol=1e-4, rtol=0)
    assert scaled.square().sum(1).mean().item() == pytest.approx(5, rel=1e-4)
    for _ in range(400):
        head.scaling.watch(2 * x)
    assert head.scaling(2 * x).square().sum(1).mean().item() == pytest.approx(5, rel=1e-2)
    before = head.scaling.center.clone()
    head.scaling.watch(x * float("nan"))
    head.scaling.watch(x[:0])
    head.eval()(x)
    assert torch.equal(head.scaling.center, before)


def test_images_that_are_all_alike_are_refused() -> None:
    with pytest.raises(TrainingError, match="all training images have the same embedding"):
        MatchingHead(SIZE, CLASSES, MatchingConfig(5)).start([(torch.full((4, SIZE), 3.1), LABELS[:4])])


def test_the_iterations_are_measured() -> None:
    head, x = random_matching(MatchingConfig(5, tolerance=1e-3))
    count = int(head.settled)
    with torch.no_grad():
        drive = functional.linear(head.scaling(x), head.encoder)
        circuit = head.circuit
        strongest = drive.abs().max()

        def left(count: int) -> float:
            last, one = (circuit.run(drive, number) for number in (count - 1, count))
            return float((one - last).abs().max() / circuit.pace / strongest)

        assert left(count) <= 1e-3 < left(count - 1)
        assert torch.equal(head.activities(x), circuit.run(drive, count))
    linear, x = random_matching(MatchingConfig(5, "linear"))
    assert not linear.finish([(x, LABELS)])
    slow, x = random_matching(MatchingConfig(5, tolerance=1e-3))
    slow.config = replace(slow.config, iterations=2)
    with torch.no_grad(), pytest.raises(TrainingError, match="after 2 iterations"):
        slow.finish([(x, LABELS)])


def test_rates_and_decay() -> None:
    head = MatchingHead(SIZE, CLASSES, MatchingConfig(5, tau=0.25, supervision=1.0))
    assert head.rates() == {"lateral": 4.0}
    assert set(head.undecayed()) == {"lateral", "encoder", "label_encoder"}
    assert set(MatchingHead(SIZE, CLASSES, MatchingConfig(5, regularization="none")).undecayed()) == {"lateral"}


BAD = [
    ({"units": 0}, "units is 0; expected an integer of at least 1"),
    ({"units": 4.0}, "units is 4.0; expected an integer"),
    ({"units": 5000}, "units is 5000; expected at most 4096"),
    ({"iterations": 0}, "iterations is 0"),
    ({"iterations": 10**6}, "iterations is 1000000; expected at most 10000"),
    ({"activation": "relu"}, "unknown activation 'relu'; choose from non-negative, linear"),
    ({"regularization": "l2"}, "unknown regularization 'l2'; choose from weight, whiten, none"),
    ({"tau": 0.0}, "tau is 0.0; expected a number above 0"),
    ({"tau": -1.0}, "tau is -1.0; expected a finite number of at least 0"),
    ({"tau": float("nan")}, "tau is nan"),
    ({"tolerance": 0.0}, "tolerance is 0.0; expected a number above 0"),
    ({"tolerance": 1.0}, "tolerance is 1.0; expected a share of the strongest drive, above 0 and below 1"),
    ({"objective": 0.0}, "objective is 0.0; expected a number above 0"),
    ({"leak": -0.1}, "leak is -0.1"),
    ({"supervision": float("inf")}, "supervision is inf"),
    (
        {"step": 2.0},
        "step is 2.0; expected a number above 0 and below 1.82, where the circuit still settles at the start",
    ),
    ({"step": 1.9, "leak": 1.0}, "below 1, where .* with a leak of 1; or leave step out"),
    ({"step": 0.0}, "step is 0.0; expected a number above 0"),
    ({"step": "auto"}, "step is 'auto'"),
    ({"end_to_end": "yes"}, "end_to_end is 'yes'; expected True or False"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(options) for options, _ in BAD])
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message) as error:
        MatchingConfig(**options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_linear_circuit_has_no_more_units_than_the_embedding_has_values() -> None:
    with pytest.raises(FieldError, match="units is 7, and the embedding has 6 values; a linear circuit has at most as"):
        MatchingHead.resolve(MatchingConfig(7, "linear"), ["a", "b"], 6, is_frozen=False)
    for config in (MatchingConfig(6, "linear"), MatchingConfig(7)):
        assert MatchingHead.resolve(config, ["a", "b"], 6, is_frozen=True) is config


# In training

MODEL = ModelConfig("tiny", head="matching", matching=MatchingConfig(8, supervision=0.5))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_trained_with_the_backbone(photos: Path, tmp_path: Path, precision: str) -> None:
    run = tmp_path / "run"
    options = ["--data", str(photos), "--backbone", "tiny", "--head", "matching", "--out", str(run)]
    form = ["--matching.units", "8", "--matching.supervision", "0.5", "--class-weights", "balanced"]
    assert main([*options, *form, "--precision", precision, "--epochs", "4", "--learning-rate", "0.01"]) == 0
    assert json.loads((run / "results.json").read_text())["test_accuracy"] >= 0.8
    head = load_checkpoint(run / "best").model.head
    assert isinstance(head, MatchingHead)
    assert head.config == MODEL.matching
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="similarity-matching">Similarity matching</h2>' in page
    assert "Unit 0" in page
    assert "iterations until it has settled" in page


RECIPES = {
    "mixed": replace(RECIPE, augment=("mixup",), label_smoothing=0.1, class_weights="balanced"),
    "averaged": replace(RECIPE, ema_decay=0.9, accumulate=2, clip_norm=1.0),
    "frozen": replace(RECIPE, augment=None, freeze_backbone=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_training_is_the_same(
    name: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPES[name], batch_size=4, epochs=2, embedding_cache=str(tmp_path / "cache"))
    whole = train(data, tmp_path / "whole", MODEL, recipe)
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
        learn(trainer, *batch)
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", MODEL, recipe)
    resumed = train(data, tmp_path / "parts", MODEL, recipe, resume=True)
    first, second = (load_checkpoint(result.best).model.state_dict() for result in (whole, resumed))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_run_of_a_version_without_the_family_is_resumed(data: ImageData) -> None:
    ours = identity(data, ModelConfig("tiny"), RECIPE)
    theirs = json.loads(ours)
    del theirs["model"]["matching"]
    refuse_other(ours, json.dumps(theirs), "last")
    changed = identity(data, ModelConfig("tiny", matching=MatchingConfig(5)), RECIPE)
    with pytest.raises(FieldError, match="units: was 64, now 5"):
        refuse_other(changed, json.dumps(theirs), "last")


def test_a_step_that_diverges_in_training_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(photos), "--backbone", "tiny", "--head", "matching", "--out", str(tmp_path / "run")]
    steps = ["--matching.step", "1.6", "--matching.objective", "1", "--learning-rate", "0.1", "--epochs", "40"]
    assert main([*options, *steps]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the circuit of the matching head does not settle: it diverges with the step 1.6" in error
    assert "--matching.step" in error
    assert main([*options[:-1], str(tmp_path / "other"), "--matching.step", "2"]) == 1
    assert "--matching.step is 2.0; expected a number above 0 and below 1.82" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_tolerance_that_is_not_reached_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(photos), "--backbone", "tiny", "--head", "matching", "--out", str(tmp_path / "run")]
    assert main([*options, "--matching.iterations", "2", "--matching.tolerance", "1e-5"]) == 1
    assert "after 2 iterations a unit is still driven by" in capsys.readouterr().err


# Edits and the report


def test_units_are_left_out() -> None:
    head, x = random_matching(MatchingConfig(5))
    with torch.no_grad():
        lost = head.without([1, 3], ())
        units = head.activities(x)
        expected = head(x) - units[:, [1, 3]] @ head.classifier.weight[:, [1, 3]].T
        torch.testing.assert_close(lost(x), expected)
    assert head.feature_names("abcd") == (None,) * 5
    with pytest.raises(UsageError, match="all features that have a weight are left out"):
        head.without(range(5), ())
    with pytest.raises(UsageError, match="a matching head has no prototypes; leave out features, the units"):
        head.without((), [0])
    with pytest.raises(UsageError, match="the features of a matching head have no names"):
        head.renamed({0: "x"})


@pytest.mark.parametrize("activation", ["non-negative", "linear"])
def test_a_class_is_added_as_to_a_linear_head_on_the_units(activation: str) -> None:
    head, x = random_matching(MatchingConfig(5, activation, supervision=1.0))
    with torch.no_grad():
        larger = head.with_class(x[:3], x[3:], 1)
        expected = head.classifier.with_class(head.activities(x[:3]), head.activities(x[3:]), 1)
        torch.testing.assert_close(larger(x), expected(head.activities(x)))
        torch.testing.assert_close(larger(x)[:, [0, 2, 3, 4]], head(x))
    assert larger.num_classes == CLASSES + 1
    larger.train().loss(x, larger(x), torch.arange(9) % (CLASSES + 1), None, 0.0).backward()
    again = MatchingHead.from_config(SIZE, CLASSES + 1, larger.options)
    again.load_state_dict(larger.state_dict())


def test_the_view_of_the_audit_is_that_of_the_classifier() -> None:
    head, x = random_matching(MatchingConfig(5))
    with torch.no_grad():
        view = head.prototype_view(x)
        assert torch.equal(view.images, head.activities(x))
        assert torch.equal(view.similarities, head(x))
    assert view.owners.tolist() == list(range(CLASSES))


def test_a_run_is_audited(data: ImageData, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2)
    run = train(data, tmp_path / "run", replace(MODEL, matching=MatchingConfig(6, "linear")), recipe)
    assert main(["audit", str(run.folder), "-o", str(tmp_path / "audit.html")]) == 0
    assert "matching" in (tmp_path / "audit.html").read_text()
    assert json.loads((run.folder / "results.json").read_text())["config"]["model"]["matching"]["units"] == 6
