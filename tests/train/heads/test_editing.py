"""Heads without some features: their logits are what explanations say that they would be."""

from __future__ import annotations

from pathlib import Path

import definitions
import numpy as np
import pytest
import torch
from explanations import explainer_of, linear_explainer_of
from forms import CLASSES, SIZE, each_form, name, random_head

from tnn_export import lower_head
from tnn_runtime import UsageError
from tnn_train import LinearHead, TverskyConfig, TverskyHead


def dropped(head: TverskyHead) -> list[list[int]]:
    """Return features to leave out: one, some with an opposite without its feature, and all but one."""
    count = head.num_features
    return [[1], [0, 2, count - 1], list(range(1, count))]


@each_form()
def test_logits_without_features_are_those_of_without(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        logits = head(x)
        explained = explainer_of(head, tmp_path / "head")(x.numpy(), logits.numpy(), CLASSES, head.num_features)
        _, magnitude = definitions.logits(head, x.double().numpy())
        for features in dropped(head):
            edited = head.without(features, ())
            found, exact, lowered = edited(x), edited.double()(x.double()), lower_head(head.without(features, ()))(x)
            for number, explanations in enumerate(explained):
                scale = max(1, magnitude[number].max())
                for one in explanations:
                    expected, where = one.without(features), (name(config), number, one.index, features)
                    assert abs(float(exact[number, one.index]) - expected) <= 1e-6 * scale, where
                    assert abs(float(found[number, one.index]) - expected) <= 1e-6 * scale, where
                    assert abs(float(lowered[number, one.index]) - expected) <= 1e-5 * scale, where


@each_form(strength=2)
def test_explanations_of_an_edited_head_list_what_is_left(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        for place, features in enumerate(dropped(head)):
            edited = head.without(features, ())
            logits = edited(x).numpy()
            explain = explainer_of(edited, tmp_path / str(place))
            for number, explanations in enumerate(explain(x.numpy(), logits, CLASSES, head.num_features)):
                for one in explanations:
                    listed = {feature.index for feature in one.features}
                    assert listed == {*range(head.num_features)} - {*features}
                    assert not {*features} & {lead.index for lead in one.leads}
                    assert one.logit == pytest.approx(logits[number, one.index], rel=1e-4, abs=1e-4)


def test_edits_add_up() -> None:
    head, x = random_head(TverskyConfig(8, thresholds=True, opposites=0.5))
    once, twice = head.without([1, 6], ()), head.without([6], ()).without([1], ())
    assert once.config == twice.config
    assert torch.equal(once(x), twice(x))


def test_what_is_left_out_stays_so_in_training() -> None:
    head, x = random_head(TverskyConfig(6))
    head = head.without([1, 4], ())
    bank = head.feature_bank.detach().clone()
    head(x).sum().backward()
    gradient = head.feature_bank.grad
    assert gradient is not None
    assert not gradient[[1, 4]].any()
    assert gradient[[0, 2, 3, 5]].any(1).all()
    assert torch.equal(head.feature_bank, bank)


@pytest.mark.parametrize("model", ["contrast", "ratio"])
@pytest.mark.parametrize("prototypes", [[0], [2, 4], [1, 2, 3, 4, 5, 6]])
def test_a_head_with_a_map_can_do_without_prototypes(model: str, prototypes: list[int]) -> None:
    head, x = random_head(TverskyConfig(6, model=model, num_prototypes=7))
    edited = head.without((), prototypes)
    assert edited.num_prototypes == edited.config.num_prototypes == 7 - len(prototypes)
    with torch.no_grad():
        head.linear.weight[:, prototypes] = 0
        torch.testing.assert_close(edited(x), head(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [[0], [1, 3], [0, 1, 2, 3]])
def test_a_linear_head_without_values_of_the_embedding(features: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    head, x = LinearHead(SIZE, CLASSES), torch.randn(6, SIZE)
    with torch.no_grad():
        explained = linear_explainer_of(head, tmp_path)(x.numpy(), head(x).numpy(), CLASSES, SIZE)
        found = head.without(features, ())(x)
    for row, explanations in zip(found, explained, strict=True):
        for one in explanations:
            assert float(row[one.index]) == pytest.approx(one.without(features), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "features", "prototypes", "message"),
    [
        ({}, [0, 1, 2, 3, 4, 5], [], "all 6 features are left out; leave at least one"),
        ({"opposites": 1.0}, [0, 1, 2, 3, 4, 5], [], "all 6 features are left out"),
        ({}, [], [3], "prototype 3 is the only one of its class"),
        ({"num_prototypes": 2}, [], [0, 1], "all 2 prototypes are left out; leave at least one"),
    ],
)
def test_edits_that_leave_nothing_are_refused(
    options: dict[str, object], features: list[int], prototypes: list[int], message: str
) -> None:
    head = TverskyHead(SIZE, CLASSES, TverskyConfig(6, **options))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        head.without(features, prototypes)


def test_a_linear_head_keeps_one_feature_and_has_no_prototypes() -> None:
    head = LinearHead(SIZE, CLASSES)
    with pytest.raises(UsageError, match="all features that have a weight are left out"):
        head.without([0, 1], ()).without([2, 3, 4], ())
    with pytest.raises(UsageError, match="a linear head has no prototypes"):
        head.without((), [0])
    with pytest.raises(UsageError, match="the features of a linear head have no names"):
        head.renamed({0: "x"})


@pytest.mark.parametrize("features", [(6,), (-1,), (0, 1, 2, 3, 4, 5)])
def test_a_form_without_features_that_are_there_is_refused(features: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="got the features .* to leave out; expected some of 0 to 5"):
        TverskyHead(SIZE, CLASSES, TverskyConfig(6, dropped=features))


CLUSTERS = torch.tensor(np.random.default_rng(0).normal(0, 4, (CLASSES + 1, SIZE)), dtype=torch.float32)


def clustered(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    labels = torch.arange(count) % (CLASSES + 1)
    return CLUSTERS[labels] + 0.5 * torch.randn(count, SIZE), labels


def trained(head: torch.nn.Module) -> torch.nn.Module:
    """Train a head on all clusters but the last one."""
    x, y = clustered(200, 0)
    x, y = x[y < CLASSES], y[y < CLASSES]
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
    return head


@pytest.mark.parametrize("place", [0, 2, CLASSES])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"difference": "ignorematch", "thresholds": True, "opposites": 1.0, "prototype_space": "feature"},
        {"model": "ratio", "smooth": True},
        {"num_prototypes": 6},
        {"model": "ratio", "num_prototypes": 6},
        {"feature_bank": "diagonal", "membership": "sigmoid"},
        None,
    ],
    ids=str,
)
def test_a_class_is_added_without_a_training(options: dict[str, object] | None, place: int) -> None:
    torch.manual_seed(0)
    form = TverskyConfig(16, theta=0.1, **(options or {}))  # type: ignore[arg-type]
    head = trained(LinearHead(SIZE, CLASSES) if options is None else TverskyHead(SIZE, CLASSES, form))
    seen, labels = clustered(100, 1)
    with torch.no_grad():
        larger = head.with_class(seen[labels == CLASSES][:6], seen[labels < CLASSES], place)
        x, y = clustered(200, 2)
        before, after = head(x), larger(x)
    others = [index for index in range(CLASSES + 1) if index != place]
    torch.testing.assert_close(after[:, others], before, rtol=1e-5, atol=1e-5)
    old = y < CLASSES
    places = torch.tensor([*others, place])[y]
    lost = float((before.argmax(1) == y)[old].float().mean() - (after.argmax(1) == places)[old].float().mean())
    found = float((after.argmax(1) == places)[~old].float().mean())
    assert (lost < 0.1, found > 0.7) == (True, True), (lost, found)


def test_an_added_class_has_the_attributes_of_its_prototype() -> None:
    from tnn_train.heads.tversky.attributes import Attribute

    attributes = (Attribute((0, 1)), Attribute((2,)), Attribute((3,), "tall"))
    form = TverskyConfig(6, opposites=1.0, prototype_space="feature", thresholds=True, attributes=attributes)
    head, x = random_head(form)
    larger = head.with_class(x[:3], x[3:], 1)
    has = (larger.prototype_values[1] > 0).tolist()
    for k, (attribute, classes) in enumerate(zip(larger.config.attributes, [(0, 2), (3,), (4,)], strict=True)):
        assert attribute.classes == tuple(sorted((*classes, *[1] * has[k])))
        assert attribute.name == attributes[k].name
