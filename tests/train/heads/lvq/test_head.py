"""Learning vector quantisation against its definition, its losses, and options that it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lvq_forms import CLASSES, SIZE, each_form, random_head
from oracles import lvq as oracle
from torch.nn import functional

from tnn_runtime import UsageError
from tnn_train import LvqConfig, LvqHead

NAMES = ("cat", "dog", "car", "ship")


@each_form
def test_every_form_equals_the_definition_in_float64(config: LvqConfig) -> None:
    head, x = random_head(config)
    inputs = x.double().numpy()
    with torch.no_grad():
        found, evidence = head(x), head.evidence(x)
    expected = oracle.logits(head, inputs)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    distances = oracle.distances(head, inputs)
    np.testing.assert_allclose(evidence["distances"].numpy(), distances, rtol=1e-4, atol=2e-5 * distances.max())
    np.testing.assert_array_equal(evidence["nearest"].numpy()[:, 0], distances.argmin(1))
    np.testing.assert_allclose(evidence["confidence"].numpy()[:, 0], oracle.confidence(head, inputs), atol=1e-4)
    assert list(evidence) == list(LvqHead.evidence_meanings)


@each_form
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 2.0, 0.5])])
@pytest.mark.parametrize("is_blended", [False, True])
def test_the_loss_is_the_weighted_mean_of_its_definition(
    config: LvqConfig, smoothing: float, weight: torch.Tensor | None, is_blended: bool
) -> None:
    head, x = random_head(config)
    labels = torch.tensor([0, 1, 2, 3, 0, 2, 2])
    shares = functional.one_hot(labels, CLASSES).float()
    if is_blended:
        shares = 0.7 * shares + 0.3 * shares.flip(0)
    targets = shares if is_blended else labels
    logits = head(x)
    loss = head.loss(x, logits, targets, weight, smoothing)
    if config.loss == "cross-entropy":
        expected = functional.cross_entropy(logits, targets, weight, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)
        return
    smoothed = ((1 - smoothing) * shares + smoothing / CLASSES).double().numpy()
    weights = np.ones(CLASSES) if weight is None else weight.double().numpy()
    each = oracle.glvq_loss(head, x.double().numpy(), smoothed, weights)
    total = len(x) if is_blended else weights[labels.numpy()].sum()
    assert loss.item() == pytest.approx(each.sum() / total, rel=1e-4, abs=1e-5)


@each_form
def test_every_parameter_learns(config: LvqConfig) -> None:
    head, x = random_head(config)
    head.loss(x, head(x), torch.tensor([0, 1, 2, 3, 0, 2, 2]), None, 0.1).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_the_loss_of_glvq_is_its_definition_whatever_the_temperature() -> None:
    head, x = random_head(LvqConfig())
    labels = torch.tensor([0, 1, 2, 3, 0, 2, 2])
    nearest = head.distances(x)
    own = nearest.gather(1, labels[:, None]).squeeze(1)
    other = nearest.masked_fill(functional.one_hot(labels, CLASSES).bool(), torch.inf).amin(1)
    plain = torch.sigmoid(head.config.beta * (own - other) / (own + other)).mean()
    for _ in range(2):
        assert head.loss(x, head(x), labels, None, 0.0).item() == pytest.approx(plain.item(), rel=1e-6)
        head.log_temperature += 3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("weighted", "smoothing", "blended"), [(False, 0.0, False), (True, 0.2, False), (False, 0.0, True)]
)
def test_the_temperature_goes_to_where_the_cross_entropy_is_lowest(
    weighted: bool, smoothing: float, blended: bool, scale: float
) -> None:
    random = torch.Generator().manual_seed(0)
    head, _ = random_head(LvqConfig())
    labels = torch.randint(CLASSES, (300,), generator=random)
    leads = scale * (torch.randn(300, CLASSES, generator=random) + 1.5 * functional.one_hot(labels, CLASSES))
    targets = functional.one_hot(labels, CLASSES).float() * 0.8 + 0.2 / CLASSES if blended else labels
    weight = torch.arange(1.0, CLASSES + 1) if weighted else None
    x = torch.zeros(300, SIZE)
    for _ in range(400):
        head.train().loss(x, (leads / head.temperature).float(), targets, weight, smoothing)

    def entropy(logarithm: float) -> float:
        logits = (leads.double() / head.temperature * np.exp(-logarithm)).float()
        return functional.cross_entropy(logits, targets, weight, label_smoothing=smoothing).item()

    assert entropy(0.0) < min(entropy(0.1), entropy(-0.1))
    before = head.log_temperature.clone()
    head.eval().loss(x, (leads / head.temperature).float(), targets, weight, smoothing)
    assert torch.equal(head.log_temperature, before), "evaluation changes nothing"


@pytest.mark.parametrize("config", [LvqConfig(), LvqConfig(latent=3, relevances="matrix")])
def test_degenerate_inputs_have_finite_losses_and_gradients(config: LvqConfig) -> None:
    head, _ = random_head(config)
    with torch.no_grad():
        head.prototypes[1:] = head.prototypes[:1]
    x = torch.cat([torch.zeros(1, SIZE), torch.full((1, SIZE), 1e-30), torch.full((1, SIZE), 1e4)]).requires_grad_()
    if head.network is None:
        x = torch.cat([x, head.prototypes[:1].detach()])
    loss = head.loss(x, head(x), torch.arange(len(x)), None, 0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert all(torch.isfinite(value).all() for value in head.evidence(x).values())


def test_a_common_shift_far_from_the_origin_costs_few_digits() -> None:
    head, x = random_head(LvqConfig(relevances="matrix"))
    with torch.no_grad():
        expected, near = head(x), head.distances(x)
        head.prototypes += 1000
        torch.testing.assert_close(head(x + 1000), expected, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(head.distances(x + 1000), near, rtol=1e-3, atol=2e-3)


def test_the_head_computes_in_float32_under_autocast_and_in_double() -> None:
    for config in (LvqConfig(), LvqConfig(latent=3, hidden=(4,), relevances="vector")):
        head, x = random_head(config)
        expected = head(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(head(x), expected)
            assert head(x.bfloat16()).dtype == torch.float32
        assert head.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prototypes": 0}, "prototypes is 0; expected an integer of at least 1"),
        ({"prototypes": 1.5}, "prototypes is 1.5"),
        ({"loss": "rslvq"}, "unknown loss 'rslvq'; choose from auto, glvq, cross-entropy"),
        ({"transfer": "relu"}, "unknown transfer"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"relevances": "tensor"}, "unknown relevances"),
        ({"rank": 0, "relevances": "matrix"}, "rank is 0"),
        ({"latent": 0}, "latent is 0"),
        ({"hidden": (0,), "latent": 2}, "hidden is .0,.; expected sizes of layers"),
        ({"hidden": 3, "latent": 2}, "hidden is 3; expected sizes of layers"),
        ({"hidden": ("3",), "latent": 2}, "expected sizes of layers"),
        ({"hidden": (10**8,), "latent": 2}, "expected sizes of layers, integers of 1 to 65536"),
        ({"prototypes": 10**9}, "prototypes is 1000000000; expected an integer of at most 65536"),
        ({"latent": 10**9}, "latent is 1000000000; expected an integer of at most 65536"),
        ({"activation": "gelu"}, "unknown activation 'gelu'; choose from sigmoid, relu"),
        ({"activate_latent": "yes"}, "activate_latent is 'yes'; expected True or False"),
        ({"pooling": "mixture", "loss": "glvq"}, "pooling is mixture, and loss is glvq, which looks at the nearest"),
        ({"start": "random"}, "unknown start"),
        ({"owners": (0, 1, 0, 2, 3)}, "expected a class below 4 a prototype, ascending"),
        ({"owners": (0, 1, 4)}, "expected a class below 4"),
        ({"owners": (0, 1, 3)}, "class 2 has no prototype"),
    ],
)
def test_bad_options_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LvqHead(SIZE, CLASSES, LvqConfig(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 7}, "latent is 7, and embeddings have 6 values; expected at most as many"),
        ({"relevances": "matrix", "rank": 7}, "rank is 7, and prototypes have 6 values; expected at most as many"),
        ({"relevances": "matrix", "rank": 4, "latent": 3}, "rank is 4, and prototypes have 3 values"),
    ],
)
def test_spaces_larger_than_the_embedding_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LvqHead.resolve(LvqConfig(**options), NAMES, SIZE, is_frozen=False)


def test_resolving_decides_the_start_once() -> None:
    for prototypes, start in ((1, "class-means"), (2, "kmeans")):
        found = LvqHead.resolve(LvqConfig(prototypes=prototypes), NAMES, SIZE, is_frozen=False)
        assert found.start == start
        assert LvqHead.resolve(found, NAMES, SIZE, is_frozen=True) == found


@pytest.mark.parametrize(
    ("options", "model", "loss"),
    [
        ({}, {"is_frozen": False}, "cross-entropy"),
        ({}, {"is_frozen": True}, "glvq"),
        ({}, {"is_frozen": False, "is_pixels": True}, "glvq"),
        ({"pooling": "mixture"}, {"is_frozen": True}, "cross-entropy"),
        ({"loss": "glvq"}, {"is_frozen": False}, "glvq"),
        ({"loss": "cross-entropy"}, {"is_frozen": True}, "cross-entropy"),
    ],
)
def test_resolving_decides_the_loss_once(options: Mapping[str, Any], model: Mapping[str, bool], loss: str) -> None:
    found = LvqHead.resolve(LvqConfig(**options), NAMES, SIZE, **model)
    assert found.loss == loss
    assert LvqHead.resolve(found, NAMES, SIZE, is_frozen=not model["is_frozen"]) == found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"hidden", "activation", "activate_latent", "rank", "relevance_rate", "noise"}),
        ({"loss": "glvq", "transfer": "identity"}, {"beta", "margin"}),
        ({"loss": "cross-entropy"}, {"transfer", "beta", "margin"}),
        ({"loss": "glvq", "relevances": "matrix", "latent": 2, "start": "noise"}, set()),
    ],
)
def test_options_that_do_nothing_are_told(options: Mapping[str, Any], expected: set[str]) -> None:
    config = LvqConfig(**options)
    resolved = LvqHead.resolve(config, NAMES, SIZE, is_frozen=False)
    found = dict(LvqHead.unused(config, resolved))
    assert expected <= found.keys()
    if "relevances" in options:
        assert not found
    fields = {field.name for field in dataclasses.fields(config)}
    assert found.keys() | set(found.values()) <= fields


def test_rates_and_decay_of_the_parts() -> None:
    head, _ = random_head(LvqConfig(relevances="matrix", prototype_rate=0.5, relevance_rate=0.1))
    assert head.rates() == {"prototypes": 0.5, "omega": 0.1}
    assert set(head.undecayed()) == {"prototypes", "omega"}
    assert all(head.get_parameter(name) is not None for name in (*head.rates(), *head.undecayed()))


@pytest.mark.parametrize("logarithm", [1e4, -1e4])
def test_a_temperature_far_beyond_all_bounds_gives_finite_logits_and_losses(logarithm: float) -> None:
    head, x = random_head(LvqConfig())
    with torch.no_grad():
        head.log_temperature.fill_(logarithm)
    logits = head(x)
    loss = head.loss(x, logits, torch.zeros(len(x), dtype=torch.long), None, 0.0)
    loss.backward()
    assert logits.isfinite().all()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())
