"""A linear layer as a Tversky head: exact, whatever the layer and the attributes are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tnn_runtime import UsageError
from tnn_train import LinearHead, TverskyConfig, TverskyHead
from tnn_train.heads.tversky.attributes import Attribute, code_of, read_attributes
from tnn_train.heads.tversky.head import LinearStart
from tnn_train.heads.tversky.unfolding import FORM, unfold

D = 48


def layer(weight: Tensor, bias: Tensor | None = None) -> LinearHead:
    head = LinearHead(weight.shape[1], len(weight))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.randn(len(weight)) if bias is None else bias)
    return head


def difference(linear: LinearHead, head: TverskyHead, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference of centred logits, as a share of the largest centred logit."""
    x = torch.randn(200, linear.in_features) * 3 + 1
    with torch.no_grad():
        ours, theirs = (
            logits.double() - logits.double().mean(1, keepdim=True)
            for logits in (head.to(dtype)(x.to(dtype)), linear.double()(x.double()))
        )
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("code", ["classes", "hierarchy"])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_the_predictions_are_those_of_the_layer(classes: int, code: str) -> None:
    """D is 48, so that there are more classes than values of the embedding in two of the cases."""
    torch.manual_seed(classes)
    linear = layer(torch.randn(classes, D))
    head = TverskyHead.from_linear(linear, TverskyConfig(code=code))
    assert difference(linear, head) <= 1e-5
    assert all(getattr(head.config, name) == value for name, value in FORM.items())
    assert head.num_features == 2 * len(head.config.attributes)
    head = TverskyHead.from_linear(layer(linear.weight.float(), linear.bias.float()), TverskyConfig(code=code))
    assert difference(linear, head, torch.float64) <= 1e-6


SPECIAL: dict[str, Callable[[], Tensor]] = {
    "rank 3": lambda: torch.randn(12, 3) @ torch.randn(3, D),
    "rank 1": lambda: torch.randn(12, 1) @ torch.randn(1, D),
    "zero rows": lambda: torch.cat([torch.zeros(4, D), torch.randn(8, D)]),
    "nothing but zeros": lambda: torch.zeros(12, D),
    "duplicates": lambda: torch.randn(4, D).repeat(3, 1),
    "one value": lambda: torch.randn(12, 1),
    "a large row": lambda: torch.cat([1e4 * torch.randn(1, D), torch.randn(11, D)]),
    "tiny": lambda: 1e-12 * torch.randn(12, D),
    "huge": lambda: 1e12 * torch.randn(12, D),
    "a large mean": lambda: 10 + torch.randn(12, D),
}


@pytest.mark.parametrize("code", ["classes", "hierarchy"])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_layers(name: str, code: str) -> None:
    torch.manual_seed(0)
    weight = SPECIAL[name]()
    linear = layer(weight, torch.zeros(12) if name in ("tiny", "nothing but zeros") else None)
    assert difference(linear, TverskyHead.from_linear(linear, TverskyConfig(code=code))) <= 1e-5


@pytest.mark.parametrize(
    ("rows", "added"),
    [
        ({"cat": "1,0", "dog": "1,1", "car": "0,0", "ship": "0,1"}, 4),
        ({"cat": "1,0", "dog": "1,0", "car": "0,1", "ship": "0,1"}, 4),
    ],
    ids=["apart by rows", "two are alike"],
)
def test_a_table_that_a_person_wrote(rows: dict[str, str], added: int, tmp_path: Path) -> None:
    """Rows that differ are not enough: a code of two columns cannot hold the logits of four classes."""
    torch.manual_seed(0)
    table = tmp_path / "attributes.csv"
    table.write_text("class,an animal,can swim\n" + "".join(f"{name},{row}\n" for name, row in rows.items()))
    attributes = read_attributes(table, tuple(rows))
    linear = layer(torch.randn(4, D))
    head = TverskyHead.from_linear(linear, TverskyConfig(attributes=attributes))
    assert head.config.attributes[:2] == attributes
    assert len(head.config.attributes) == 2 + added
    assert difference(linear, head) <= 1e-5


def test_enough_attributes_are_kept_as_they_are() -> None:
    torch.manual_seed(0)
    attributes = (Attribute((0, 1), "an animal"), Attribute((1, 3), "can swim"), Attribute((0,), "purrs"))
    linear = layer(torch.randn(4, D))
    head = TverskyHead.from_linear(linear, TverskyConfig(attributes=attributes))
    assert head.config.attributes == attributes
    assert difference(linear, head) <= 1e-5


def test_prototypes_have_the_attributes_of_their_class() -> None:
    torch.manual_seed(0)
    head = TverskyHead.from_linear(layer(torch.randn(6, D)), TverskyConfig())
    has = code_of(head.config.attributes, 6) > 0
    own, opposite = head.prototypes.chunk(2, 1)
    assert torch.equal(own > 0, has)
    assert torch.equal(opposite > 0, ~has)


def test_fixed_scalars_stay_fixed_and_no_bias_is_a_bias_of_zeros() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, D)
    one = unfold(weight, None, TverskyConfig(fixed=("beta", "theta")))
    assert one.config.fixed == ("beta", "theta")
    other = unfold(weight, torch.zeros(5), TverskyConfig(fixed=("beta", "theta")))
    assert torch.equal(one.thresholds, other.thresholds)
    assert torch.equal(one.feature_bank, other.feature_bank)
    assert {tensor.dtype for tensor in one[1:]} == {torch.float64}


@pytest.mark.parametrize("code", ["classes", "hierarchy"])
@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_gradients_follow_from_those_of_the_layer(classes: int, code: str) -> None:
    """So an optimizer's means of them do: the mean is linear."""
    torch.manual_seed(classes)
    linear = LinearStart(D, classes, TverskyConfig(code=code))
    head = linear.final_form()
    x, labels = torch.randn(64, D) + 1, torch.randint(classes, (64,))
    for model in (linear, head):
        model.loss(x, model(x), labels, None, 0.1).backward()
    inherited = linear.inherited(head)
    assert [new for new, *_ in inherited] == [head.feature_bank, head.thresholds]
    for new, old, matrix in inherited:
        expected = matrix @ old.grad.double()
        torch.testing.assert_close(new.grad.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert int(matrix.abs().sum(1).max()) <= classes / 2, "the fewer classes have the say"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_values_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    linear = layer(torch.randn(3, D))
    with torch.no_grad():
        getattr(linear, name)[1] = value
    count = D if name == "weight" else 1
    with pytest.raises(
        UsageError, match=f"the {name} of the linear layer has {count} values that are no finite numbers"
    ):
        unfold(linear.weight, linear.bias, TverskyConfig())
