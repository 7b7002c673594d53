from __future__ import annotations

import copy

import definitions
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tnn_runtime import UsageError
from tnn_train import ModelConfig, TverskyConfig, TverskyHead
from tnn_train.heads import build_head
from tnn_train.similarity import DIFFERENCES, INTERSECTIONS, MODELS

configs = st.builds(
    TverskyConfig,
    num_features=st.integers(1, 9),
    model=st.sampled_from(sorted(MODELS)),
    intersection=st.sampled_from(sorted(INTERSECTIONS)),
    difference=st.sampled_from(sorted(DIFFERENCES)),
    alpha=st.floats(0.01, 3),
    beta=st.floats(0.01, 3),
    theta=st.floats(0.01, 3),
)

FORMS = [
    TverskyConfig(7, model, intersection, difference, 0.4, 0.9, 1.3)
    for model in MODELS
    for intersection in INTERSECTIONS
    for difference in DIFFERENCES
]


def random_head(config: TverskyConfig, seed: int, size: int = 5, classes: int = 4) -> tuple[TverskyHead, torch.Tensor]:
    """Return a head and inputs ``[6, size]`` whose features are away from the membership boundary."""
    torch.manual_seed(seed)
    head = TverskyHead(size, classes, config)
    torch.nn.init.normal_(head.feature_bank)
    torch.nn.init.normal_(head.prototypes)
    x = torch.randn(60, size)
    away = (head.project(x).abs() > 1e-3).all(1)
    assert (head.project(head.prototypes).abs() > 1e-7).all()
    return head, x[away][:6]


@given(configs, st.integers(0, 10_000))
@settings(deadline=None, max_examples=200)
def test_equals_the_definitions_in_float64(config: TverskyConfig, seed: int) -> None:
    head, x = random_head(config, seed)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    with torch.no_grad():
        error = np.abs(head(x).numpy() - expected)
    assert (error <= 2e-5 * (magnitude + 1)).all()


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_zero_and_negative_inputs_have_finite_logits_and_gradients(config: TverskyConfig) -> None:
    head, _ = random_head(config, 0)
    x = torch.stack([torch.zeros(5), -head.feature_bank[0].detach(), torch.full((5,), 1e-30)]).requires_grad_()
    logits = head(x)
    expected, _ = definitions.logits(head, x.detach().double().numpy())
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=2e-5, atol=2e-5)
    logits.sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in head.parameters())):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_gradients_are_those_of_the_formula(config: TverskyConfig) -> None:
    head, x = random_head(config, 1)
    head = head.double()
    names = [name for name, _ in head.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (x,))

    inputs = (x.double().requires_grad_(), *(p.detach().clone().requires_grad_() for p in head.parameters()))
    assert torch.autograd.gradcheck(run, inputs)


def test_every_parameter_of_every_form_learns() -> None:
    for config in FORMS:
        head, x = random_head(config, 2)
        head(x).square().sum().backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, (config, name)


def test_no_form_builds_a_tensor_over_inputs_prototypes_and_features() -> None:
    inputs, classes, features = 32, 16, 24

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, list | tuple) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return result

    for config in FORMS:
        head = TverskyHead(8, classes, TverskyConfig(features, config.model, config.intersection, config.difference))
        with Largest() as largest:
            head(torch.randn(inputs, 8)).sum().backward()
        assert 0 < largest.size <= inputs * features, config


def test_scalars_stay_positive_in_the_ratio_model_and_start_where_they_were_told() -> None:
    head = TverskyHead(5, 3, TverskyConfig(model="ratio", alpha=0.2, beta=3.0, theta=1e-3))
    assert [head.alpha.item(), head.beta.item(), head.theta.item()] == pytest.approx([0.2, 3.0, 1e-3], rel=1e-5)
    assert head.logit_scale.item() == pytest.approx(20.0)
    with torch.no_grad():
        head.raw_alpha.fill_(-30)
        head.raw_beta.fill_(-3)
    assert head.alpha.item() >= 0
    assert head.beta.item() > 0
    x = torch.randn(50, 5) * 10
    similarity = head(x) / head.logit_scale
    assert similarity.min() >= 0
    assert similarity.max() <= 1


def test_parameters_have_the_public_names_and_shapes() -> None:
    head = TverskyHead(5, 3, TverskyConfig(num_features=7))
    assert head.feature_bank.shape == (7, 5)
    assert head.prototypes.shape == (3, 5)
    assert head.alpha.shape == head.beta.shape == head.theta.shape == ()
    assert head.alpha is head.raw_alpha


def test_copies_and_state_dicts_keep_the_logits() -> None:
    for config in FORMS:
        head, x = random_head(config, 3)
        other = TverskyHead(5, 4, config)
        other.load_state_dict(head.state_dict())
        assert torch.equal(head(x), other(x))
        assert torch.equal(head(x), copy.deepcopy(head)(x))


def test_the_papers_spelling_is_accepted() -> None:
    assert TverskyConfig(difference="substractmatch") == TverskyConfig(difference="subtractmatch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "linear"}, "unknown similarity model 'linear'; choose from contrast, ratio"),
        ({"intersection": "sum"}, "unknown intersection 'sum'; choose from product"),
        ({"difference": "none"}, "unknown difference 'none'; choose from ignorematch, subtractmatch"),
        ({"num_features": 0}, "num_features is 0; expected an integer of at least 1"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a number of at least 0"),
        ({"beta": float("nan")}, "beta is nan; expected a number of at least 0"),
        ({"model": "ratio", "theta": 0.0}, "theta is 0; the ratio model learns it as a positive number"),
    ],
)
def test_unusable_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        TverskyHead(4, 3, TverskyConfig(**options))  # type: ignore[arg-type]


def test_an_unknown_head_lists_the_choices() -> None:
    with pytest.raises(UsageError, match="unknown head 'cosine'; choose from linear, tversky"):
        build_head(4, ModelConfig(head="cosine"))
