"""What every explanation can do, of whatever head."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from explanations import explainer_of, linear_explainer_of
from forms import CLASSES, SIZE, forms, name, random_head

from tnn_export.bundle.write import write_head
from tnn_runtime import Explanation, FeatureParts, Part, TverskyExplanation, UsageError
from tnn_runtime.explain.linear import LinearExplainer
from tnn_runtime.explain.result import Contrast, FeatureLead
from tnn_train import LinearHead, TverskyConfig

HEADS = [*forms(model=("contrast", "ratio"), smooth=(False, True), num_prototypes=(None, 7)), None]
FORMULAS = {
    ("contrast", False, None): "common - input_only - prototype_only + bias",
    ("contrast", False, 7): "common - input_only - prototype_only + bias",
    ("ratio", False, None): "scale * common / (common + input_only + prototype_only + offset)",
    ("ratio", False, 7): "common + bias",
    ("ratio", True, None): "scale * (common + offset) / (common + input_only + prototype_only + offset)",
    ("ratio", True, 7): "common + offset + bias",
}
"""By the model, whether it is smooth, and the number of prototypes before a linear map."""


@pytest.fixture(params=HEADS, ids=lambda config: name(config) if config else "linear")
def explanation(request: pytest.FixtureRequest, tmp_path: Path) -> Explanation:
    """Of a Tversky head of each kind, or of a linear one."""
    config: TverskyConfig | None = request.param
    if config is None:
        torch.manual_seed(0)
        linear, x = LinearHead(SIZE, CLASSES), torch.randn(6, SIZE)
        with torch.no_grad():
            return linear_explainer_of(linear, tmp_path)(x.numpy(), linear(x).numpy(), num_features=4)[0][0]
    head, x = random_head(config)
    with torch.no_grad():
        found = explainer_of(head, tmp_path)(x.numpy(), head(x).numpy(), num_features=4)[0][0]
    assert isinstance(found, TverskyExplanation)
    assert bool(found.sums) == (config.model == "ratio" and config.num_prototypes is not None)
    return found


def test_a_copy_leaves_features_out_as_the_original_does(explanation: Explanation) -> None:
    listed = [feature.index for feature in explanation.features]
    expected = [explanation.without(listed[:count]) for count in range(len(listed) + 1)]
    assert expected[0] == pytest.approx(explanation.logit, rel=1e-12)
    assert len(set(expected)) > 1
    copies = [
        pickle.loads(pickle.dumps(explanation)),
        dataclasses.replace(explanation, label="other"),
        dataclasses.replace(explanation, features=explanation.features[::-1]),
    ]
    for copy in copies:
        assert [copy.without(listed[:count]) for count in range(len(listed) + 1)] == pytest.approx(expected, rel=1e-12)
    assert copies[0] == explanation
    assert copies[1].label == "other"
    fewer = dataclasses.replace(explanation, features=explanation.features[1:])
    assert fewer.without(listed[1:2]) == explanation.without(listed[1:2])
    with pytest.raises(UsageError, match="expected some of those that this explanation lists"):
        fewer.without(listed[:1])


def test_the_formula_is_how_the_logit_follows(explanation: Explanation, request: pytest.FixtureRequest) -> None:
    values = {**{part.name: part.value for part in explanation.parts}, "bias": explanation.bias}
    if isinstance(explanation, TverskyExplanation):
        config = request.node.callspec.params["explanation"]
        assert explanation.formula == FORMULAS[config.model, config.smooth, config.num_prototypes]
        assert list(values.values())[:3] == [explanation.common, explanation.input_only, explanation.prototype_only]
        values |= {"scale": explanation.scale, "offset": explanation.offset}
    else:
        assert explanation.formula == "supporting - opposing + bias"
    assert eval(explanation.formula, {}, values) == pytest.approx(explanation.logit, rel=1e-12)


def test_it_can_be_written_as_json(explanation: Explanation) -> None:
    assert json.loads(json.dumps(dataclasses.asdict(explanation)))["logit"] == explanation.logit
    answer = json.loads(json.dumps(explanation.to_dict()))
    assert answer["formula"] == explanation.formula
    assert answer["parts"] == [dataclasses.asdict(part) for part in explanation.parts]
    assert [feature["index"] for feature in answer["features"]] == [f.index for f in explanation.features]
    assert not {"sums", "by_prototype"} & {*answer, *answer["features"][0]}


def test_it_is_shown_without_what_only_programs_need(explanation: Explanation) -> None:
    assert repr(explanation).startswith(f"{type(explanation).__name__}(label='class ")
    assert "sums" not in repr(explanation)
    assert "by_prototype" not in repr(explanation)
    assert "float64" not in repr(explanation)


def test_parts_are_found_by_name(explanation: Explanation) -> None:
    for part in explanation.parts:
        assert explanation.part(part.name) is part
        assert part.signed == part.sign * part.value
    names = ", ".join(part.name for part in explanation.parts)
    with pytest.raises(UsageError, match=f"got the part 'nothing'; expected one of {names}"):
        explanation.part("nothing")
    for feature in explanation.features:
        assert feature.part(feature.parts[0].name) is feature.parts[0]


@pytest.mark.parametrize("config", HEADS, ids=lambda config: name(config) if config else "linear")
def test_leads_are_what_a_feature_adds_beyond_what_it_adds_to_the_rival(
    config: TverskyConfig | None, tmp_path: Path
) -> None:
    head, x = random_head(config or TverskyConfig(6))
    if config is None:
        linear = LinearHead(SIZE, CLASSES)
        explainer, logits = linear_explainer_of(linear, tmp_path), linear(x)
    else:
        explainer, logits = explainer_of(head, tmp_path), head(x)
    best, second, third = explainer(x.numpy(), logits.detach().numpy(), 3, 99, 1)[0]
    assert (best.rival, second.rival, third.rival) == (second.label, best.label, best.label)
    for one, other in ((best, second), (second, best), (third, best)):
        added = [{f.index: e.logit - e.without([f.index]) for f in e.features} for e in (one, other)]
        expected = {index: value - added[1][index] for index, value in added[0].items()}
        found = dict.fromkeys(expected, 0.0) | {lead.index: lead.value for lead in one.leads}
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        sizes = [abs(lead.value) for lead in one.leads]
        assert sizes == sorted(sizes, reverse=True)
    (alone, *_) = explainer(x.numpy(), logits.detach().numpy(), 1, 2, 1)[0]
    assert alone.rival == best.rival
    assert alone.leads == best.leads[:2]


def explained(features: list[tuple[str | None, float]], leads: list[tuple[str | None, float]]) -> Explanation:
    """Return an explanation of the class cat, with features that add so much."""
    parts = [Part("supporting", 1, value) if value >= 0 else Part("opposing", -1, -value) for _, value in features]
    return Explanation(
        label="cat",
        index=0,
        score=0.9,
        logit=sum(value for _, value in features),
        parts=(),
        bias=0.0,
        features=tuple(FeatureParts(k, (part,), features[k][0]) for k, part in enumerate(parts)),
        contrast=Contrast(
            label="dog",
            index=1,
            score=0.1,
            difference=sum(value for _, value in leads),
            parts=(),
            bias=0.0,
            features=tuple(FeatureLead(10 + k, title, value) for k, (title, value) in enumerate(leads)),
            rest=0.0,
        )
        if leads
        else None,
    )


@pytest.mark.parametrize(
    ("features", "leads", "expected"),
    [
        (
            [("cat or dog", 2.04), ("frog, cat or dog", 3.1), ("dog", -0.9), ("not ship", 0.1)],
            [("cat", 1.44), (None, -0.72)],
            "cat: for it speak 'frog, cat or dog' (+3.1) and 'cat or dog' (+2), against it speaks 'dog' (-0.9); "
            "compared with dog, for it speaks 'cat' (+1.4), against it speaks 'feature 11' (-0.72)",
        ),
        ([("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0)], [], "cat: for it speak 'a' (+4), 'b' (+3) and 'c' (+2)"),
        (
            [(None, -123.4), (None, -20.0), (None, -19.0)],
            [],
            "cat: against it speak 'feature 0' (-123) and 'feature 1' (-20)",
        ),
        ([("a", 0.0)], [("b", -1.0)], "cat: compared with dog, against it speaks 'b' (-1)"),
        ([], [], "cat"),
    ],
)
def test_an_explanation_reads_as_a_sentence(
    features: list[tuple[str | None, float]], leads: list[tuple[str | None, float]], expected: str
) -> None:
    explanation = explained(features, leads)
    assert explanation.summary == expected
    assert explanation.to_dict()["summary"] == expected


def test_a_single_class_has_no_rival(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear, x = LinearHead(SIZE, 1), torch.randn(2, SIZE)
    write_head(linear, tmp_path)
    explainer = LinearExplainer(tmp_path / "head.npz", None, ("cat",), SIZE)
    ((e,), _) = explainer(x.numpy(), linear(x).detach().numpy())
    assert (e.rival, e.leads) == (None, ())
    assert e.summary.startswith("cat: ")
    assert "compared" not in e.summary
