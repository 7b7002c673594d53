"""What sets a class apart from another one: entries that add up to the difference of the logits, for every head."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from explanations import explainer_of, linear_explainer_of
from forms import CLASSES, SIZE, forms, name, random_head
from waiting import FOREVER

from tnn_export.bundle.write import write_head
from tnn_runtime import Classifier, Explanation, UsageError
from tnn_runtime.explain.linear import LinearExplainer
from tnn_runtime.explain.rival import rival_index
from tnn_train import LinearHead, TverskyConfig

HEADS = [*forms(model=("contrast", "ratio"), smooth=(False, True), num_prototypes=(None, 7)), None]
ALL = 99


def explained(config: TverskyConfig | None, folder: Path, against_one: bool = False, num_features: int = ALL) -> Any:
    """Return the explanations of all classes of some inputs, and the class to compare them with, if it is one."""
    head: Any
    head, x = random_head(config or TverskyConfig(6))
    if config is None:
        head = LinearHead(SIZE, CLASSES)
        explainer: Any = linear_explainer_of(head, folder)
    else:
        explainer = explainer_of(head, folder)
    logits = head(x).detach().numpy()
    rival = int(logits[0].argmin()) if against_one else None
    kept = logits.argmax(1) != rival
    return explainer(x.numpy()[kept], logits[kept], CLASSES, num_features, 1, rival), rival


@pytest.mark.parametrize("against_one", [False, True], ids=["runner-up", "a class"])
@pytest.mark.parametrize("config", HEADS, ids=lambda config: name(config) if config else "linear")
def test_the_entries_add_up_to_the_difference(config: TverskyConfig | None, against_one: bool, tmp_path: Path) -> None:
    rows, rival = explained(config, tmp_path, against_one)
    is_ratio = config is not None and config.model == "ratio"
    assert len(rows) > 1
    for row in rows:
        by_index = {one.index: one for one in row}
        for place, one in enumerate(row):
            contrast = one.contrast
            expected = row[0 if place else 1] if rival is None else by_index[rival]
            expected = row[0] if expected is one else expected
            assert (contrast.label, contrast.index, contrast.score) == (expected.label, expected.index, expected.score)
            assert contrast.difference == pytest.approx(one.logit - expected.logit, rel=1e-9, abs=1e-12)
            assert contrast.bias == pytest.approx(one.bias - expected.bias)
            parts = sum(part.signed for part in contrast.parts) + contrast.bias + contrast.interplay
            features = sum(lead.value for lead in contrast.features) + contrast.bias + contrast.rest
            assert (parts, features) == pytest.approx((contrast.difference,) * 2, rel=1e-9, abs=1e-9)
            if not is_ratio:
                assert (contrast.interplay, contrast.rest) == (0.0, 0.0)
            if config is not None and not is_ratio:
                for part in contrast.parts:
                    ahead = one.part(part.name).value - expected.part(part.name).value
                    assert part.value == pytest.approx(ahead, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("config", HEADS, ids=lambda config: name(config) if config else "linear")
def test_each_feature_is_what_the_difference_would_lose_without_it(
    config: TverskyConfig | None, tmp_path: Path
) -> None:
    for row in explained(config, tmp_path)[0]:
        best, other = row[:2]
        lost = {
            feature.index: best.contrast.difference - best.without([feature.index]) + other.without([feature.index])
            for feature in best.features
        }
        found = {lead.index: lead.value for lead in best.contrast.features}
        assert {index: found.get(index, 0.0) for index in lost} == pytest.approx(lost, rel=1e-6, abs=1e-9)
        assert all(found.values()), "what is the same for both is listed"


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("config", HEADS, ids=lambda config: name(config) if config else "linear")
def test_what_is_not_listed_is_in_the_rest(config: TverskyConfig | None, count: int, tmp_path: Path) -> None:
    few, all_ = (explained(config, tmp_path, num_features=number)[0][0][0].contrast for number in (count, ALL))
    assert few.features == all_.features[:count]
    assert sum(lead.value for lead in few.features) + few.rest + few.bias == pytest.approx(few.difference)


@pytest.mark.parametrize("config", HEADS[:-1], ids=name)
def test_a_feature_is_present_where_the_input_has_it(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    explainer = explainer_of(head, tmp_path)
    for values, (best, *_) in zip(
        explainer.prepare(x.double().numpy()), explainer(x.numpy(), head(x).detach().numpy(), 1, ALL), strict=True
    ):
        assert {lead.index: lead.present for lead in best.leads} == {k.index: values[k.index] > 0 for k in best.leads}


def test_features_of_a_linear_head_are_neither_present_nor_absent(tmp_path: Path) -> None:
    assert {lead.present for lead in explained(None, tmp_path)[0][0][0].leads} == {None}


def test_two_equal_classes_are_not_set_apart(tmp_path: Path) -> None:
    head = LinearHead(SIZE, CLASSES)
    with torch.no_grad():
        head.weight[:] = head.weight[0].clone()
        head.bias[:] = 0.5
    x = torch.randn(2, SIZE)
    for best, *_ in linear_explainer_of(head, tmp_path)(x.numpy(), head(x).detach().numpy()):
        assert best.contrast is not None
        assert (best.contrast.difference, best.contrast.features, best.contrast.rest) == (0.0, (), 0.0)


def test_a_single_class_has_no_contrast(tmp_path: Path) -> None:
    head, x = LinearHead(SIZE, 1), torch.randn(2, SIZE)
    write_head(head, tmp_path)
    explainer = LinearExplainer(tmp_path / "head.npz", None, ("cat",), SIZE)
    ((found,), _) = explainer(x.numpy(), head(x).detach().numpy())
    assert (found.contrast, found.rival, found.leads) == (None, None, ())


@pytest.mark.parametrize(
    ("against", "names", "message"),
    [
        ("cta", ("cat", "dog"), "against is 'cta'; expected 'runner-up' or the name of a class: 'cat', 'dog'; did you"),
        ("", ("cat", "dog"), "against is ''; expected 'runner-up' or the name of a class: 'cat', 'dog'"),
        ("Cat", ("cat", "dog"), "did you mean 'cat'?"),
        (3, ("cat", "dog"), "against is 3; expected 'runner-up' or the name of a class"),
        (["cat"], ("cat", "dog"), r"against is \['cat'\]; expected"),
        ("x", tuple(map(str, range(99))), "'9' and 89 more"),
        ("runner-up", ("cat",), "the bundle has no other class than 'cat' to compare with; leave it out"),
        ("cat", ("cat",), "the bundle has no other class than 'cat' to compare with; leave it out"),
    ],
)
def test_a_class_that_cannot_be_compared_with(against: Any, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rival_index(against, names)


@pytest.fixture
def image() -> Any:
    with np.load(FIXTURES / "bundle-v4" / "golden.npz") as golden:
        return np.asarray(golden["images"][:1])


def test_every_way_to_an_explanation_takes_a_class_to_compare_with(image: Any) -> None:
    with Classifier.load(FIXTURES / "bundle-v4", "cpu") as classifier:
        ((best, other),) = classifier.explain(image, 2)
        assert (best.rival, other.rival) == (other.label, best.label)

        def ways(against: str) -> list[list[Explanation]]:
            return [
                classifier.explain(image, 2, against=against)[0],
                asyncio.run(classifier.explain_async(image, 2, against=against))[0],
                classifier.submit(image[0], 2, answer="explanation", against=against).result(FOREVER),
                classifier.submit(image[0], 2, answer="all", against=against).result(FOREVER).explanations or [],
            ]

        for against in ("runner-up", other.label):
            for found in ways(against):
                assert [one.rival for one in found] == [other.label, best.label]
        itself = rf"against is '{best.label}', and '{best.label}' is the best class of the image itself; expected"
        for way in (
            lambda: classifier.explain(image, 2, against=best.label),
            lambda: classifier.submit(image[0], answer="explanation", against=best.label).result(FOREVER),
            lambda: classifier.submit(image[0], answer="all", against=best.label).result(FOREVER),
        ):
            with pytest.raises(UsageError, match=itself):
                way()
        with pytest.raises(UsageError, match=rf"images\[0\]: {itself}") as caught:
            classifier.explain(image, against=best.label)
        assert caught.value.index == 0
        with pytest.raises(UsageError, match="did you mean"):
            classifier.submit(image[0], answer="explanation", against=f"{other.label}s")


def test_it_can_be_written_as_json(image: Any) -> None:
    with Classifier.load(FIXTURES / "bundle-v4", "cpu") as classifier:
        ((best, _),) = classifier.explain(image, 2)
    found = json.loads(json.dumps(best.to_dict()))
    assert found["contrast"] == json.loads(json.dumps(dataclasses.asdict(best.contrast)))  # type: ignore[arg-type]
    assert (found["rival"], found["leads"]) == (best.rival, found["contrast"]["features"])
