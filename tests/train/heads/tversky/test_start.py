from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tnn_runtime import UsageError
from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads import build_head
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.head import LinearStart
from tnn_train.heads.tversky.start import resolve_start
from tnn_train.heads.tversky.unfolding import FORM

NAMES = ("cat", "dog", "car", "ship")


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize(
    ("options", "trained", "frozen"),
    [
        ({}, "linear", "class-means"),
        ({"code": "classes", "unfold_at": 0.3, "fixed": ("alpha",)}, "linear", "class-means"),
        ({"prototype_init": "class-means"}, "class-means", "class-means"),
        ({"prototype_init": "normal"}, "random", "random"),
        ({"model": "ratio"}, "random", "class-means"),
        ({"num_features": 8}, "random", "class-means"),
        ({"num_prototypes": 12}, "random", "class-means"),
        ({"start": "linear"}, "linear", "linear"),
        ({"start": "random"}, "random", "random"),
        ({"start": "class-means", "prototype_init": "class-means"}, "class-means", "class-means"),
    ],
    ids=str,
)
def test_auto_follows_from_the_options_and_the_backbone(
    options: dict[str, object], trained: str, frozen: str, is_frozen: bool
) -> None:
    resolved = resolve_start(TverskyConfig(**options), NAMES, is_frozen=is_frozen)
    assert resolved.start == (frozen if is_frozen else trained)
    assert (resolved.prototype_init == "class-means") == (resolved.start == "class-means")
    assert resolve_start(resolved, NAMES, is_frozen=is_frozen) == resolved
    if resolved.start == "linear":
        assert all(getattr(resolved, name) == value for name, value in FORM.items())
    else:
        kept = dataclasses.replace(resolved, start="auto", prototype_init=options.get("prototype_init"))
        assert dataclasses.replace(kept, start=options.get("start", "auto")) == TverskyConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "linear", "model": "ratio"}, "start is linear, which decides model; got 'ratio'"),
        ({"start": "linear", "prototype_init": "class-means"}, "which decides prototype_init"),
        ({"start": "linear", "num_features": 128}, "which decides num_features; got 128"),
        ({"start": "linear", "normalize": True}, "which decides normalize; got True"),
        ({"start": "class-means", "prototype_init": "normal"}, "start is class-means, and prototype_init is normal"),
        ({"start": "random", "prototype_init": "class-means"}, "start is random, and prototype_init is class-means"),
        ({"start": "linear", "code": "no-such-file"}, "expected classes, hierarchy, or a CSV file"),
        ({"code": "heirarchy"}, "expected classes, hierarchy, or a CSV file"),
    ],
    ids=str,
)
def test_what_contradicts_a_start_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_start(TverskyConfig(**options), NAMES, is_frozen=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unfold_at": 1.01}, "unfold_at is 1.01; expected a share from 0 to 1"),
        ({"unfold_at": -0.1}, "unfold_at"),
        ({"unfold_at": float("nan")}, "unfold_at"),
        ({"start": "linaer"}, "start"),
        ({"code": ""}, "code is ''; expected classes, hierarchy or the path of a file"),
        ({"opposites": -1.0}, "opposites"),
        ({"opposites": float("inf")}, "opposites"),
        (
            {"opposites": 1.0, "num_features": 7},
            "opposites above 0 needs a learned bank and an even number of features",
        ),
        ({"opposites": 1.0, "feature_bank": "diagonal"}, "opposites above 0 needs a learned bank"),
        ({"thresholds": 1}, "thresholds is 1; expected True or False"),
        ({"prototype_space": "features"}, "prototype_space"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TverskyConfig(**options)


def test_a_table_of_attributes_is_completed_so_that_it_tells_all_classes_apart(tmp_path: Path) -> None:
    table = tmp_path / "attributes.csv"
    table.write_text("class,an animal,can swim\ncat,1,0\ndog,yes,yes\ncar,,\nship,no,x\n")
    resolved = resolve_start(TverskyConfig(code=str(table)), NAMES, is_frozen=False)
    assert resolved.attributes[:2] == (Attribute((0, 1), "an animal"), Attribute((1, 3), "can swim"))
    assert resolved.num_features == 2 * len(resolved.attributes)
    head = build_head("tversky", 3, 4, resolved, is_training=True)
    assert isinstance(head, LinearStart)
    x = torch.randn(50, 3)
    one, other = (logits - logits.mean(1, keepdim=True) for logits in (head(x), head.final_form()(x)))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_final_form_has_the_attributes_of_the_head_that_it_is_like() -> None:
    """Two linear layers may have different hierarchies; averages need one."""
    torch.manual_seed(0)
    config = resolve_start(TverskyConfig(), NAMES, is_frozen=False)
    one, other = LinearStart(3, 4, config), LinearStart(3, 4, config)
    like = one.final_form()
    assert isinstance(like, TverskyHead)
    theirs = other.final_form(like=like)
    assert theirs.config == like.config != other.final_form().config
    x = torch.randn(50, 3)
    a, b = (logits - logits.mean(1, keepdim=True) for logits in (other(x), theirs(x)))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
