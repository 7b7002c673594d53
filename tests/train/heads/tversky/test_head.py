from __future__ import annotations

import copy
import os
import warnings

import definitions
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from forms import MEASURES, each_form, form, forms, name, random_head, seeds
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tnn_runtime import UsageError
from tnn_train import ModelConfig, TverskyConfig, TverskyHead, TverskySimilarity
from tnn_train.heads import build_head
from tnn_train.heads.tversky import similarity
from tnn_train.heads.tversky.similarity import INTERSECTIONS

PAIRWISE = forms(model=("contrast", "ratio"), intersection=("softmin",), num_prototypes=(None, 37))


def gradients_of(head: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the input and of every parameter, which must all be there."""
    x = x.clone().requires_grad_()
    tensors = {"x": x, **dict(head.named_parameters())}
    return dict(zip(tensors, torch.autograd.grad(head(x).square().sum(), list(tensors.values())), strict=True))


@each_form()
@given(seed=seeds)
@settings(max_examples=20)
def test_every_form_equals_the_definitions_in_float64(config: TverskyConfig, seed: int) -> None:
    head, x = random_head(config, seed)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    with torch.no_grad():
        error = np.abs(head(x).numpy() - expected)
    assert (error <= 2e-5 * (magnitude + 1)).all()


@each_form()
def test_gradients_are_those_of_the_formula(config: TverskyConfig) -> None:
    head, x = random_head(config, 1)
    head = head.double()
    names = [name for name, _ in head.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (x,))

    inputs = (x[:3].double().requires_grad_(), *(p.detach().clone().requires_grad_() for p in head.parameters()))
    assert torch.autograd.gradcheck(run, inputs)


@each_form()
def test_degenerate_inputs_have_the_right_logits_and_finite_gradients(config: TverskyConfig) -> None:
    head, _ = random_head(config)
    with torch.no_grad():
        head.prototypes[0] = 0
        head.prototypes[1] = 1e-30
        head.prototypes[2] = head.prototypes[3]
    x = torch.stack([torch.zeros(5), torch.full((5,), 1e-30), torch.full((5,), -1e-30), torch.full((5,), 1e4)])
    if head.feature_bank is not None:
        with torch.no_grad():
            head.feature_bank[:, 0] = head.feature_bank[:, 0].abs() + 0.1
            if head.thresholds is not None:
                head.thresholds.abs_()
        nothing = torch.tensor([[-50.0, 0, 0, 0, 0]])
        assert (head.directions(nothing) < 0).all()
        x = torch.cat([x, nothing])
    if config.prototype_space == "embedding":
        x = torch.cat([x, head.prototypes[2:3].detach()])
    expected, magnitude = definitions.logits(head, x.double().numpy())
    assert (np.abs(head(x).detach().numpy() - expected) <= 2e-5 * (magnitude + 1)).all()
    for tensor_name, gradient in gradients_of(head, x).items():
        assert torch.isfinite(gradient).all(), tensor_name


@pytest.mark.parametrize("config", MEASURES, ids=name)
def test_gradients_at_the_membership_boundary_are_those_beside_it(config: TverskyConfig) -> None:
    """At 0 a feature is absent, so the gradients are those of the form that has it just below 0."""
    head, x = random_head(config, 4)
    head = head.double()
    a = head.project(x.double()).detach()
    a[:, 2] = 0
    below = a.clone()
    below[:, 2] = -1e-12
    found, expected = (
        torch.autograd.grad(head.score(values).square().sum(), [values, *head.parameters()])
        for values in (a.requires_grad_(), below.requires_grad_())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each_form()
def test_every_parameter_of_every_form_learns(config: TverskyConfig) -> None:
    head, x = random_head(config, 2)
    for tensor_name, gradient in gradients_of(head, x).items():
        no_effect = tensor_name == "raw_alpha" and head.feature_bank is None and config.difference == "ignorematch"
        no_effect |= tensor_name == "raw_beta" and head.feature_bank is None and config.difference == "ignorematch"
        assert gradient.abs().sum() > 0 or (no_effect and config.membership == "hard"), tensor_name


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("config", MEASURES, ids=name)
def test_no_form_builds_a_tensor_over_all_inputs_prototypes_and_features(config: TverskyConfig) -> None:
    inputs, prototypes, features = 32, 40, 48
    head = TverskyHead(8, prototypes, TverskyConfig(features, config.model, config.intersection, config.difference))
    bound = features * max(inputs, prototypes)
    if config.intersection == "softmin":
        bound = inputs * similarity.BLOCK * features
        assert bound < inputs * prototypes * features
    with Largest() as largest:
        head(torch.randn(inputs, 8)).sum().backward()
    assert 0 < largest.size <= bound


def _peak_of_a_step(head: TverskyHead, a: Tensor, b: Tensor) -> int:
    """Return the most bytes that the tensors of a training step on the measures alone held at once."""
    a, b = a.requires_grad_(), b.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            head.compare(a, b).sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum([0, *changes]).max())


@pytest.mark.parametrize("config", MEASURES, ids=name)
def test_memory_of_a_training_step_grows_with_two_of_the_three_sizes(config: TverskyConfig) -> None:
    torch.manual_seed(0)
    head = TverskyHead(5, 4, config)
    for n, p, f in ((32, 64, 96), (128, 256, 384)):
        values = n * p + n * f + p * f
        if config.intersection == "softmin":
            values += n * f * similarity.BLOCK
        peak = _peak_of_a_step(head, torch.randn(n, f), torch.randn(p, f))
        assert peak <= 12 * 4 * values, peak / (4 * values)
        assert 12 * values < n * p * f or n == 32


def test_blocks_of_prototypes_join_without_a_seam() -> None:
    for config in PAIRWISE:
        for prototypes in (similarity.BLOCK, similarity.BLOCK + 1, 2 * similarity.BLOCK + 5):
            torch.manual_seed(prototypes)
            head = TverskyHead(8, prototypes, config).double()
            x = torch.randn(5, 8, dtype=torch.float64)
            expected, _ = definitions.logits(head, x.numpy())
            np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
            with torch.no_grad():
                np.testing.assert_allclose(head(x).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_softmin_is_negative_for_weak_features_but_not_in_the_ratio_model() -> None:
    weak = similarity.Features(torch.ones(1, 4), torch.full((1, 4), 0.1))
    pairs = similarity.Pairs(weak, weak)
    assert INTERSECTIONS["softmin"](pairs).item() == pytest.approx(4 * (0.1 - np.log(2)))
    parts = similarity.measure(pairs, "ratio", "softmin", "subtractmatch")
    assert parts.common.item() == pytest.approx(0.4, rel=1e-5)


@each_form(model="ratio")
def test_the_ratio_model_stays_between_0_and_1(config: TverskyConfig) -> None:
    for scale in (0.01, 1.0, 100.0):
        head, _ = random_head(config, 5)
        found = head.similarities(scale * torch.randn(50, 5))
        assert found.min() >= -1e-6
        assert found.max() <= 1 + 1e-6


@pytest.mark.parametrize("membership", ["hard", "sigmoid"])
def test_no_object_exceeds_itself(membership: str) -> None:
    """With degrees of membership, too, the excess is never negative, and that over an equal object is 0."""
    head, _ = random_head(form(difference="excess", membership=membership, prototype_space="feature"))
    values = 0.1 * torch.randn(50, 6)
    with torch.no_grad():
        parts = head.parts(values, values)
    for part in (parts.input_only, parts.prototype_only):
        assert part.min() >= 0
        assert part.max() > 1e-3
        torch.testing.assert_close(part.diagonal(), torch.zeros(50), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_objects_that_share_nothing_exceed_each_other_by_nothing(training: bool) -> None:
    """Not even by a rounding error, beside which a small theta would be nothing."""
    config = TverskyConfig(600, "ratio", difference="excess", theta=1e-7, smooth=True, prototype_space="feature")
    torch.manual_seed(0)
    head = TverskyHead(5, 40, config)
    a, b = 100 * torch.randn(30, 600).abs(), 100 * torch.randn(40, 600).abs()
    a[:15, ::2], a[15:, 1::2] = -1, -1
    b[:20, ::2], b[20:, 1::2] = -1, -1
    with torch.set_grad_enabled(training):
        similarities = head.compare(a.requires_grad_(), b)
    assert similarities.min() > 0
    assert similarities.max() <= 1
    if not training:
        torch.testing.assert_close(similarities[:15, 20:], torch.ones(15, 20))
        torch.testing.assert_close(similarities[15:, :20], torch.ones(15, 20))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 1, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    for config in (*MEASURES, *PAIRWISE):
        head, _ = random_head(config)
        x = torch.randn(*shape, 5)
        logits = head(x)
        assert logits.shape == (*shape, 4)
        torch.testing.assert_close(logits.reshape(-1, 4), head(x.reshape(-1, 5)))
        assert head.similarities(x).shape == (*shape, config.num_prototypes or 4)


@each_form()
def test_the_similarity_of_two_objects_is_that_of_the_head(config: TverskyConfig) -> None:
    head, x = random_head(config, 6)
    layer = TverskySimilarity(5, config)
    state = head.state_dict()
    layer.load_state_dict({name: state[name] for name in layer.state_dict()})
    y = head.prototypes.detach()
    if config.prototype_space == "feature":
        y = torch.randn(len(y), 5)
        with torch.no_grad():
            head.prototypes.copy_(head.project(y))
    expected = head.similarities(x)
    torch.testing.assert_close(layer(x.unsqueeze(1), y), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(layer(x[0], y[1]), expected[0, 1], rtol=2e-5, atol=2e-5)
    assert layer(x[:4], y[:4]).shape == (4,)
    assert all(torch.isfinite(p.grad).all() for p in _backward(layer, x))


def _backward(layer: TverskySimilarity, x: Tensor) -> list[nn.Parameter]:
    layer(x[:3], x[3:6]).sum().backward()
    return list(layer.parameters())


def test_similarity_is_asymmetric_where_alpha_and_beta_differ() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 8)
    for alpha, beta in ((0.2, 0.7), (0.5, 0.5)):
        layer = TverskySimilarity(8, TverskyConfig(32, alpha=alpha, beta=beta))
        assert torch.isclose(layer(x, y), layer(y, x), rtol=1e-5).item() == (alpha == beta)


def test_heads_may_share_a_feature_bank() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse = TverskyHead(5, 2, TverskyConfig(6))
            self.fine = TverskyHead(5, 7, TverskyConfig(6, model="ratio"), self.coarse.feature_bank)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.coarse(x), self.fine(x)], -1)

    two = Two()
    assert sum(p.numel() for p in two.parameters()) == 6 * 5 + 2 * 5 + 3 + 7 * 5 + 4
    other = Two()
    other.load_state_dict(two.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(two(x), other(x))
    copied = copy.deepcopy(two)
    assert copied.fine.feature_bank is copied.coarse.feature_bank
    assert copied.fine.feature_bank is not two.fine.feature_bank
    with pytest.raises(UsageError, match="shape \\[6, 5\\]; expected a Parameter \\[9, 5\\]"):
        TverskyHead(5, 3, TverskyConfig(9), two.coarse.feature_bank)
    with pytest.raises(UsageError, match="choose 'learned'"):
        TverskyHead(5, 3, TverskyConfig(feature_bank="diagonal"), two.coarse.feature_bank)


@each_form(strength=1)
def test_torch_compile_and_torch_export_need_no_graph_break(config: TverskyConfig) -> None:
    head, x = random_head(config, 7)
    torch.compiler.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), head(x), rtol=2e-5, atol=2e-5)
    for found, expected in zip(gradients_of(compiled, x).values(), gradients_of(head, x).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    program = torch.export.export(head, (x[:4],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for size in (1, 3, 6):
        torch.testing.assert_close(program.module()(x[:size]), head(x[:size]), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [*MEASURES[::10], *(pytest.param(config, marks=pytest.mark.exhaustive) for config in MEASURES[5::10])],
    ids=name,
)
def test_the_default_compiler_gives_the_same_logits(config: TverskyConfig) -> None:
    head, x = random_head(config, 7)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(head, fullgraph=True)(x), head(x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", MEASURES, ids=name)
def test_autocast_leaves_the_head_in_full_precision(config: TverskyConfig, dtype: torch.dtype) -> None:
    head, x = random_head(config, 8)
    x = x.to(dtype)
    expected = head(x.float())
    with torch.autocast("cpu", dtype):
        logits = head(x)
        similarities = head.similarities(x)
    assert logits.dtype == similarities.dtype == torch.float32
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("config", [*MEASURES, *PAIRWISE], ids=name)
def test_cuda_gives_the_logits_and_gradients_of_the_cpu(config: TverskyConfig) -> None:
    head, x = random_head(config, 11)
    on_cuda = copy.deepcopy(head).cuda()
    torch.testing.assert_close(on_cuda(x.cuda()).cpu(), head(x), rtol=2e-5, atol=2e-5)
    for found, expected in zip(gradients_of(on_cuda, x.cuda()).values(), gradients_of(head, x).values(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.float16):
        torch.testing.assert_close(on_cuda(x.cuda()).cpu(), head(x), rtol=2e-5, atol=2e-5)


def test_a_head_in_half_precision_still_sums_in_float32() -> None:
    for config in (*MEASURES, *PAIRWISE):
        head, x = random_head(config, 9)
        half = copy.deepcopy(head).half()
        rounded = copy.deepcopy(half).float()
        logits = half(x.half())
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, rounded(x.half().float()), rtol=2e-5, atol=2e-5)


def _train_in_parallel(rank: int, address: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for config in (*MEASURES, *PAIRWISE):
        head, x = random_head(config, 10)
        parallel = nn.parallel.DistributedDataParallel(head)
        for _ in range(2):
            parallel(x + rank).sum().backward()
        gradients = [p.grad for p in head.parameters()]
        assert all(gradient is not None for gradient in gradients), config
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_training_finds_no_unused_parameter(tmp_path: os.PathLike[str]) -> None:
    torch.multiprocessing.start_processes(
        _train_in_parallel, (os.fspath(tmp_path) + "/store",), nprocs=2, start_method="fork"
    )


def test_a_channels_last_backbone_changes_nothing() -> None:
    from tnn_train import build_model

    model = build_model(ModelConfig(backbone="tiny"))
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


def test_fixed_numbers_are_buffers() -> None:
    for model in ("contrast", "ratio"):
        head = TverskyHead(5, 3, TverskyConfig(model=model, alpha=0.0, beta=0.7, fixed=("alpha", "beta")))
        assert dict(head.named_buffers()).keys() == {"raw_alpha", "raw_beta"}
        assert (head.alpha.item(), head.beta.item()) == (0.0, pytest.approx(0.7))
        other = TverskyHead(5, 3, TverskyConfig(model=model, fixed=("beta", "alpha")))
        other.load_state_dict(head.state_dict())
        assert other.beta.item() == pytest.approx(0.7)


def test_what_was_learned_may_be_fixed_and_the_other_way_round() -> None:
    for model in ("contrast", "ratio"):
        learned = TverskyHead(5, 3, TverskyConfig(model=model, alpha=0.3, theta=0.9))
        fixed = TverskyHead(5, 3, TverskyConfig(model=model, fixed=("alpha", "beta", "theta", "logit_scale")))
        x = torch.randn(4, 5)
        fixed.load_state_dict(learned.state_dict())
        assert torch.equal(fixed(x), learned(x))
        learned.load_state_dict(fixed.state_dict())
        assert torch.equal(fixed(x), learned(x))


@pytest.mark.parametrize("large", ["input", "prototype"])
@pytest.mark.parametrize("intersection", ["min", "softmin"])
def test_one_large_object_does_not_drown_the_small_ones(intersection: str, large: str) -> None:
    fixed = ("alpha", "beta")
    config = TverskyConfig(64, "contrast", intersection, "ignorematch", 0.0, 0.0, fixed=fixed)
    torch.manual_seed(0)
    head = TverskyHead(16, 5, config)
    x = torch.randn(6, 16)
    with torch.no_grad():
        (x if large == "input" else head.prototypes)[0] *= 1e6
        expected, _ = definitions.logits(head, x.double().numpy())
        np.testing.assert_allclose(head(x).numpy(), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).min())


@pytest.mark.parametrize("scale", [1e-4, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("intersection", ["product", "min", "max"])
def test_an_object_without_features_is_measured_exactly_beside_large_ones(intersection: str, scale: float) -> None:
    torch.manual_seed(0)
    head = TverskyHead(64, 20, TverskyConfig(512, intersection=intersection, difference="subtractmatch"))
    with torch.no_grad():
        head.prototypes *= scale
        x = torch.cat([torch.zeros(1, 64), 100 * torch.randn(8, 64)])
        together, alone = head.evidence(x), head.evidence(x[:1])
    assert together["common"][0].abs().max() < 1e-5
    assert together["input_only"][0].abs().max() < 1e-5
    for part, values in together.items():
        np.testing.assert_allclose(values[0], alone[part][0], rtol=1e-6, atol=1e-5)


def test_any_dtype_of_input_is_taken() -> None:
    for config in (*MEASURES, *PAIRWISE):
        head, x = random_head(config)
        for dtype in (torch.float64, torch.float16, torch.int64):
            assert torch.equal(head(x.to(dtype)), head(x.to(dtype).float()))
        assert head.double()(x).dtype == torch.float64
    assert TverskyHead(5, 3).to("meta")(torch.empty(2, 5, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("feature_bank", ["learned", "diagonal"])
def test_vectors_of_another_size_are_refused(feature_bank: str) -> None:
    config = TverskyConfig(feature_bank=feature_bank)
    for size in (1, 6):
        with pytest.raises(UsageError, match=f"got vectors of shape \\[3, {size}\\]; expected \\[..., 5\\]"):
            TverskyHead(5, 3, config)(torch.randn(3, size))
        with pytest.raises(UsageError, match="expected"):
            TverskySimilarity(5, config)(torch.randn(3, 5), torch.randn(3, size))
    for sizes, message in (((0, 3), "in_features is 0; expected at least 1"), ((5, 0), "num_classes is 0")):
        with pytest.raises(UsageError, match=message):
            TverskyHead(*sizes, config)


def test_inits_have_the_norms_they_promise() -> None:
    for init in ("uniform", "normal", "orthogonal"):
        head = TverskyHead(400, 100, TverskyConfig(200, init=init, prototype_gain=3.0))
        assert head.feature_bank is not None
        assert head.feature_bank.norm(dim=1).mean().item() == pytest.approx(1, rel=0.02)
        assert head.prototypes.norm(dim=1).mean().item() == pytest.approx(3, rel=0.02)
    bank = TverskyHead(400, 100, TverskyConfig(200, init="orthogonal")).feature_bank
    assert bank is not None
    torch.testing.assert_close(bank @ bank.T, torch.eye(200), rtol=1e-4, atol=1e-4)
    bank = TverskyHead(400, 100, TverskyConfig(200, init="xavier_uniform", prototype_init="normal")).feature_bank
    assert bank is not None
    assert bank.abs().max().item() == pytest.approx((6 / 600) ** 0.5, rel=0.01)


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
    head = TverskyHead(5, 3, TverskyConfig(feature_bank="diagonal", num_prototypes=8))
    assert head.feature_bank is None
    assert head.feature_weight is not None
    torch.testing.assert_close(head.feature_weight, torch.ones(5))
    assert head.prototypes.shape == (8, 5)
    assert head.linear is not None
    assert head.linear.weight.shape == (3, 8)


def test_copies_and_state_dicts_keep_the_logits() -> None:
    for config in (*MEASURES, *PAIRWISE):
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
        ({"model": "linear"}, "unknown model 'linear'; choose from contrast, ratio"),
        ({"intersection": "sum"}, "unknown intersection 'sum'; choose from product, mean, gmean, min, max, softmin"),
        ({"difference": "none"}, "unknown difference 'none'; choose from ignorematch, subtractmatch, excess"),
        ({"num_features": 0}, "num_features is 0; expected an integer of at least 1"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a finite number of at least 0"),
        ({"beta": float("nan")}, "beta is nan; expected a finite number of at least 0"),
        ({"smooth": True}, "smooth adds theta to the numerator of the ratio model; got the model contrast"),
        ({"model": "ratio", "smooth": 1}, "smooth is 1; expected True or False"),
        ({"model": "ratio", "theta": 0.0}, "theta is 0; the ratio model divides by it where nothing is shared, so"),
        ({"model": "ratio", "theta": 0.0, "fixed": ("theta",)}, "theta is 0; the ratio model divides by it"),
        ({"model": "ratio", "alpha": 0.0}, "alpha is 0; the ratio model learns it as a positive number, .* or fix it"),
        ({"model": "ratio", "theta": 1e-40}, "theta is 1e-40; the ratio model divides by it"),
        ({"alpha": 1e39}, r"alpha is 1e\+39; expected a finite number of at most 10000"),
        ({"fixed": "alpha"}, "fixed is 'alpha'; expected a tuple of names out of alpha, beta, theta, logit_scale"),
        ({"fixed": ("gamma",)}, "fixed is ('gamma',.; expected a tuple of names out of alpha, beta, theta"),
        ({"membership": "soft"}, "unknown membership 'soft'; choose from hard, sigmoid"),
        ({"feature_bank": "shared"}, "unknown feature_bank 'shared'; choose from learned, diagonal"),
        ({"init": "zeros"}, "unknown init 'zeros'; choose from uniform, normal, xavier_uniform, orthogonal"),
        ({"prototype_init": "zeros"}, "unknown prototype_init 'zeros'; choose from .* class-means"),
        ({"num_prototypes": 0}, "num_prototypes is 0; expected an integer of at least 1"),
        ({"normalize": 1}, "normalize is 1; expected True or False"),
        ({"sharpness": -1.0}, "sharpness is -1.0; expected a finite number of at least 0"),
    ],
)
def test_unusable_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        TverskyHead(4, 3, TverskyConfig(**options))  # type: ignore[arg-type]


def test_an_unknown_head_lists_the_choices() -> None:
    with pytest.raises(
        UsageError, match="unknown head 'cosine'; choose from linear, tversky, lvq, parts, matching, logic"
    ):
        build_head("cosine", 4, 3)
