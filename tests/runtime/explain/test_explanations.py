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

from tnn_runtime import Explanation, TverskyExplanation, UsageError
from tnn_train import LinearHead, TverskyConfig

HEADS = [*forms(model=("contrast", "ratio"), num_prototypes=(None, 7)), None]
FORMULAS = {
    ("contrast", None): "common - input_only - prototype_only + bias",
    ("contrast", 7): "common - input_only - prototype_only + bias",
    ("ratio", None): "scale * common / (common + input_only + prototype_only + offset)",
    ("ratio", 7): "common + bias",
}
"""By the model, and the number of prototypes before a linear map."""


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
        assert explanation.formula == FORMULAS[config.model, config.num_prototypes]
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
