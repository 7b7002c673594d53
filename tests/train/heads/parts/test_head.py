"""Parts heads against their definitions, and what trains them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from oracles import parts as oracle
from part_heads import ALL, CLASSES, COVERING, PLACES, SIZE, name, random_parts
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_train import PartsConfig
from tnn_train.errors import TrainingError
from tnn_train.fields import FieldError
from tnn_train.heads.parts.head import PartsHead
from tnn_train.heads.parts.last_layer import LastLayer, fit_last_layer
from tnn_train.heads.parts.projection import changeable, project

CLASS_NAMES = tuple("abcd")
PROTOPNET = PartsConfig(per_class=2, depth=5)
PIPNET = PartsConfig("pipnet", num_parts=7, alignment=2.5)


@pytest.mark.parametrize("config", ALL, ids=name)
def test_it_is_what_its_definition_says(config: PartsConfig) -> None:
    head, x = random_parts(config)
    maps = x.double().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(head.feature_maps(x, x), oracle.similarity_maps(head, maps), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(head.similarities(x), oracle.similarities(head, maps), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(head(x), oracle.logits(head, maps), rtol=1e-5, atol=1e-5)
        assert torch.equal(head.pool(head.feature_maps(x, x)), head.feature_values(x))
        assert {key: value.dtype for key, value in head.evidence(x).items()} == {"similarities": torch.float32}


@pytest.mark.parametrize("config", [PROTOPNET, PIPNET], ids=name)
def test_in_training_it_computes_in_float32_and_learns(config: PartsConfig) -> None:
    head, x = random_parts(config)
    before = head(x)
    head.train()
    labels = torch.arange(len(x)) % CLASSES
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32
    if config.kind == "protopnet":
        torch.testing.assert_close(logits, before, rtol=1e-4, atol=1e-4)
    views = PartsHead.views(config)
    loss = head.loss(x.repeat(views, 1, 1, 1), logits.repeat(views, 1), labels.repeat(views), None, 0.0)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters() if p.requires_grad)
    assert float(head.detector.add_on[0].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0, 3.0])], ids=["alike", "weighted"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_protopnet_is_the_one_of_the_paper(weight: Tensor | None, soft: bool) -> None:
    head, x = random_parts(dataclasses.replace(PROTOPNET, cluster=0.7, separation=0.2))
    labels = torch.arange(len(x)) % CLASSES
    shares = functional.one_hot(labels, CLASSES).float()
    if soft:
        shares = 0.3 * shares + 0.7 * shares.roll(1, 0)
    with torch.no_grad():
        logits = head(x)
        found = head.loss(x, logits, shares if soft else labels, weight, 0.1)
        cross_entropy = functional.cross_entropy(logits, shares if soft else labels, weight, label_smoothing=0.1)
        distances = head.detector.distances(x.double()).amin((2, 3)).numpy()
    weights = np.ones(CLASSES) if weight is None else weight.numpy()
    owners, total, count = head.detector.owners.numpy(), 0.0, 0.0
    for image, row in enumerate(shares.numpy()):
        for label, share in enumerate(row):
            own, other = distances[image][owners == label].min(), distances[image][owners != label].min()
            total += share * weights[label] * (0.7 * own - 0.2 * other)
            count += share * weights[label]
    assert float(found - cross_entropy) == pytest.approx(total / (len(x) if soft else count), rel=1e-4)


def test_the_loss_of_pipnet_aligns_views_and_wants_every_part() -> None:
    head, x = random_parts(PIPNET)
    logits, labels = torch.rand(10, CLASSES), torch.arange(10) % CLASSES
    with torch.no_grad():
        found = float(head.loss(torch.cat([x, x.flip(1)]), logits, labels, None, 0.0))
        first, second = (head.detector.presences(one.double()).numpy() for one in (x, x.flip(1)))
    alignment = -np.log((first * second).sum(1)).mean()
    presence = np.mean([-np.log(np.tanh(view.max((2, 3)).sum(0))).mean() for view in (first, second)])
    scores = torch.log(logits.square() + 1)
    expected = float(functional.cross_entropy(scores, labels)) + 2.5 * alignment + presence
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_last_layer_of_protopnet_stays_until_the_end() -> None:
    head = PartsHead(SIZE, CLASSES, PROTOPNET)
    assert head.weight.tolist() == [[1.0 if p // 2 == c else -0.5 for p in range(8)] for c in range(CLASSES)]
    assert head.rates() == {"weight": 0.0, "bias": 0.0}
    assert PartsHead(SIZE, CLASSES, PIPNET).rates() == {"weight": 50.0}


def batches_of(count: int = 24, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return maps with classes that tell, in two batches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    maps = torch.randn(count, SIZE, *PLACES, generator=generator)
    maps[torch.arange(count), labels, 1, 2] += 4
    return [(maps[:13], labels[:13]), (maps[13:], labels[13:])]


@pytest.mark.parametrize("add_on", [True, False])
def test_prototypes_become_the_nearest_patches_of_their_class(add_on: bool) -> None:
    head, _ = random_parts(dataclasses.replace(PROTOPNET, add_on=add_on))
    batches = batches_of()
    x, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    with torch.no_grad():
        before = head.detector.prototypes.double().clone()
        encoded = head.detector.encode(x.double())
        found = project(head.detector, batches)
    for prototype, (image, row, column) in enumerate(found.sources.tolist()):
        own = labels == head.detector.owners[prototype]
        apart = (encoded[own] - before[prototype][:, None, None]).square().mean(1)
        assert labels[image] == head.detector.owners[prototype]
        torch.testing.assert_close(head.detector.prototypes[prototype].double(), encoded[image, :, row, column])
        assert float(found.moved[prototype]) in [
            pytest.approx(float(one.sqrt()), rel=1e-6) for one in apart.flatten().sort().values[:2]
        ]
    with torch.no_grad():
        similarities = head.eval().similarities(x)
    assert similarities[found.sources[:, 0], range(8)].tolist() == pytest.approx([np.log(1e4 + 1)] * 8, rel=1e-3)


def test_prototypes_of_a_class_become_different_patches() -> None:
    head, _ = random_parts(dataclasses.replace(PROTOPNET, per_class=3))
    batches = batches_of()
    x, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    with torch.no_grad():
        head.detector.prototypes.copy_(head.detector.prototypes[:1].clone())
        start = head.detector.prototypes[0].double().clone()
        found = project(head.detector, batches)
        apart = (head.detector.encode(x.double()) - start[:, None, None]).square().mean(1).sqrt()
    assert len({*map(tuple, found.sources.tolist())}) == 12
    for label in range(CLASSES):
        nearest = apart[labels == label].flatten().sort().values[:3]
        torch.testing.assert_close(found.moved[head.detector.owners == label].sort().values, nearest)


@pytest.mark.parametrize("similarity", ["log", "linear"])
def test_a_projection_changes_no_more_answers_than_its_bound(similarity: str) -> None:
    shares = []
    for seed in range(6):
        head, _ = random_parts(dataclasses.replace(PROTOPNET, similarity=similarity), seed)
        batches = batches_of(40, seed)
        x = torch.cat([one for one, _ in batches])
        with torch.no_grad():
            head.bias.zero_()
            project(head.detector, batches)
            head.detector.prototypes += 0.03 * seed * torch.randn_like(head.detector.prototypes)
            distances, before = head.detector.distances(x.double()).amin((2, 3)), head(x).argmax(1)
            moved = project(head.detector, batches).moved
            bound = changeable(head.detector, LastLayer(head.weight, head.bias), distances, moved)
            changed = float((head(x).argmax(1) != before).double().mean())
        assert changed <= bound
        shares.append(bound)
    assert shares[0] < 0.1
    assert shares[-1] > shares[0]


@pytest.mark.parametrize("config", [PROTOPNET, PIPNET], ids=name)
def test_the_end_of_a_training_is_told(config: PartsConfig) -> None:
    head, _ = random_parts(dataclasses.replace(config, sparsity=0.01))
    batches = batches_of(60)
    with torch.no_grad():
        head.start(batches)
        assert head.finish(batches)
    before, projected, fitted, bound = head.steps.tolist()
    assert 0 <= before <= 1
    assert fitted >= projected
    assert fitted > 0.4
    assert (0 <= bound <= 1) == (config.kind == "protopnet")
    assert int((head.sources[:, 0] >= 0).sum()) >= 1
    weight = head.arrays()["weight"]
    if config.kind == "pipnet":
        assert bool((weight >= 0).all())
    assert int((weight == 0).sum()) > 0


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            {"fires_above": 0.999},
            "no part fires in 60 of 60 training images, so that their logits are all 0; train longer",
        ),
        ({"sparsity": 10.0}, "the fit of the last layer made all weights 0, and so all logits; lower --parts.sparsity"),
        ({}, None),
    ],
)
def test_a_head_without_a_reason_has_a_note(
    options: dict[str, float], note: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    head, x = random_parts(dataclasses.replace(PIPNET, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        head.finish(batches_of(60))
    if note is None:
        assert not caplog.messages
        return
    assert [message[: len(note)] for message in caplog.messages] == [note]
    with pytest.raises(UsageError, match="no part of this head has a weight, so that its logits are all 0"):
        head.without([0], [])
    if "fires_above" in options:
        with pytest.raises(UsageError, match="no part fires more in the images of the new class than in others"):
            head.with_class(x[:2], x[2:], 0)


def test_parts_of_pipnet_come_from_where_they_are_most() -> None:
    head, _ = random_parts(dataclasses.replace(PIPNET, fires_above=0.0))
    batches = batches_of()
    x = torch.cat([one for one, _ in batches])
    with torch.no_grad():
        head.finish(batches)
        maps = head.feature_maps(x, x)
    for part, (image, row, column) in enumerate(head.sources.tolist()):
        assert maps[image, part, row, column] == maps[:, part].max()


@pytest.mark.parametrize("is_positive", [False, True])
def test_the_last_layer_is_the_best_one(is_positive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    s, labels = torch.rand(80, 5, generator=generator), torch.randint(0, 3, (80,), generator=generator)
    towards = torch.zeros(3, 5) if is_positive else torch.eye(3, 5)
    start = LastLayer(torch.ones(3, 5), None if is_positive else torch.zeros(3))
    strength = 0.01
    found = fit_last_layer(s, labels, start, towards, strength, is_positive=is_positive)

    def loss(layer: LastLayer) -> float:
        fit = functional.cross_entropy(layer(s.double()), labels)
        return float(fit + strength * (layer.weight - towards.double()).abs().sum())

    least = loss(found)
    for _ in range(300):
        step = 10 ** float(torch.empty(1).uniform_(-4, 0, generator=generator))
        weight = found.weight + step * torch.randn(3, 5, generator=generator).double()
        bias = None if found.bias is None else found.bias + step * torch.randn(3, generator=generator).double()
        assert loss(LastLayer(weight.clamp_min(0) if is_positive else weight, bias)) >= least - 1e-7
    assert int((found.weight == towards).sum()) > 0


def test_a_strong_sparsity_leaves_the_last_layer_where_it_is_drawn_to() -> None:
    s, labels = torch.rand(30, 5), torch.arange(30) % 3
    found = fit_last_layer(s, labels, LastLayer(torch.rand(3, 5), None), torch.zeros(3, 5), 10.0, is_positive=True)
    assert not found.weight.any()


def test_too_few_patches_for_so_many_prototypes() -> None:
    batches = [(torch.randn(4, SIZE, 1, 2), torch.tensor([0, 1, 2, 3]))]
    head = PartsHead(SIZE, CLASSES, PartsConfig(per_class=3))
    message = "class 0 has 2 patches in its training images for 3 prototypes; choose fewer with --parts.per-class"
    for do in (head.start, head.finish):
        with torch.no_grad(), pytest.raises(TrainingError, match=f"^{message}"):
            do(batches)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "protopnett"}, "unknown kind 'protopnett'; choose from protopnet, pipnet"),
        ({"per_class": 0}, "per_class is 0; expected an integer of at least 1"),
        ({"per_class": 10**9}, "per_class is 1000000000; expected an integer of at most 65536"),
        ({"depth": 10**9}, "depth is 1000000000; expected an integer of at most 65536"),
        ({"per_class": 1.5}, "per_class is 1.5"),
        ({"depth": 0}, "depth is 0"),
        ({"similarity": "cosine"}, "unknown similarity 'cosine'; choose from log, linear"),
        ({"epsilon": 0.0}, "epsilon is 0; expected 1e-06 to below 1"),
        ({"epsilon": 1.0}, "epsilon is 1"),
        ({"cluster": -1.0}, "cluster is -1.0"),
        ({"separation": float("nan")}, "separation is nan"),
        ({"start": "kmeans"}, "unknown start 'kmeans'"),
        ({"add_on": "yes"}, "add_on is 'yes'; expected True or False"),
        ({"num_parts": 1}, "num_parts is 1, and one part alone is everywhere"),
        ({"alignment": -2.0}, "alignment is -2.0"),
        ({"fires_above": 1.0}, "fires_above is 1; expected a share"),
        ({"sparsity": float("inf")}, "sparsity is inf"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        PartsConfig(**options)  # type: ignore[arg-type]


def test_what_follows_from_the_backbone() -> None:
    def resolved(config: PartsConfig, size: int = 512, *, is_frozen: bool = False) -> PartsConfig:
        found = PartsHead.resolve(config, CLASS_NAMES, size, is_frozen=is_frozen)
        assert PartsHead.resolve(found, CLASS_NAMES, size, is_frozen=is_frozen) == found
        return found

    assert (resolved(PartsConfig()).depth, resolved(PartsConfig(), 20).depth) == (128, 20)
    assert resolved(PartsConfig(add_on=False, depth=3)).depth is None
    assert resolved(PartsConfig("pipnet")).alignment == 0.5
    assert resolved(PartsConfig("pipnet"), is_frozen=True).alignment == 0
    with pytest.raises(FieldError, match="depth is 64, and the backbone's map has 20 values at each place"):
        resolved(PartsConfig(depth=64), 20)
    with pytest.raises(FieldError, match=r"alignment is 1, which compares two views .* frozen"):
        resolved(PartsConfig("pipnet", alignment=1.0), is_frozen=True)
    with pytest.raises(FieldError, match="num_parts is missing, and the backbone's map has 1 channel"):
        resolved(PartsConfig("pipnet"), 1)


def test_options_of_the_other_kind_do_nothing() -> None:
    unused = {kind: {name for name, _ in PartsHead.unused(PartsConfig(kind), None)} for kind in ("protopnet", "pipnet")}
    fields = {field.name for field in dataclasses.fields(PartsConfig)}
    assert unused["protopnet"] | unused["pipnet"] == fields - {"kind", "sparsity", "owners", "names"}
    assert not unused["protopnet"] & unused["pipnet"]
    assert ("epsilon", "similarity") in PartsHead.unused(PartsConfig(similarity="linear"), None)


@pytest.mark.parametrize("config", [PROTOPNET, PIPNET], ids=name)
def test_parts_are_left_out_and_named(config: PartsConfig) -> None:
    head, x = random_parts(config)
    weight = head.arrays()["weight"].detach().double().numpy().copy()
    weight[:, [1, 2]] = 0
    bias = 0 if head.bias is None else head.bias.detach().numpy()
    expected = oracle.similarities(head, x.double().numpy()) @ weight.T + bias
    np.testing.assert_allclose(head.without([1, 2], []).eval()(x).detach(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="the prototypes of a parts head are its features; leave features out"):
        head.without([], [1])
    with pytest.raises(UsageError, match="all parts that have a weight are left out"):
        head.without(range(head.num_prototypes), [])
    names = head.renamed({1: "the beak"}).feature_names(CLASS_NAMES)
    assert names[1] == "the beak"
    assert all(name.startswith(f"part {part}") for part, name in enumerate(names) if part != 1)
    if config.kind == "protopnet":
        assert names[7] == "part 7 of d"


@pytest.mark.parametrize("place", [0, 2, CLASSES])
@pytest.mark.parametrize("config", [PROTOPNET, PIPNET], ids=name)
def test_a_class_is_added(config: PartsConfig, place: int) -> None:
    torch.manual_seed(0)
    head, x = random_parts(config)
    generator = torch.Generator().manual_seed(5)
    examples = torch.randn(6, SIZE, *PLACES, generator=generator)
    examples[:, 5, 0, 0] += 8
    with torch.no_grad():
        larger = head.with_class(examples, x, place).eval()
        others = [label for label in range(CLASSES + 1) if label != place]
        torch.testing.assert_close(larger(x)[:, others], head(x), rtol=1e-5, atol=1e-5)
        both = larger(torch.cat([examples, x]))[:, place]
    assert float(both[:6].mean()) > float(both[6:].mean())
    again = PartsHead(SIZE, CLASSES + 1, larger.options).eval()
    again.load_state_dict(larger.state_dict())
    torch.testing.assert_close(again(x), larger(x))
    if config.kind == "protopnet":
        assert larger.num_prototypes == head.num_prototypes + 2
        assert larger.feature_names([*"abcde"])[-1] == f"part 9 of {'abcde'[place]}"
        assert larger.sources[-1].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("config", COVERING, ids=name)
def test_a_part_beside_images_is_an_image_of_it_alone(config: PartsConfig) -> None:
    head, x = random_parts(config)
    with torch.no_grad():
        view = head.prototype_view(x)
        assert torch.equal(view.images, head.similarities(x))
        assert view.prototypes.shape == (head.num_prototypes, head.num_prototypes)
        if config.kind == "protopnet" and not config.add_on:
            alone = head.similarities(head.detector.prototypes[:, :, None, None])
            torch.testing.assert_close(view.prototypes, alone)
