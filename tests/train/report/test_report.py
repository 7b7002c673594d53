from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from PIL import Image

from tnn_runtime import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import ImageData, LinearHead, TverskyConfig, TverskyHead, load_checkpoint
from tnn_train.data import ImageSet
from tnn_train.data.images import even_sample
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.heads import Head
from tnn_train.heads.description import Sample
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.model.image_model import Normalize
from tnn_train.report import RunSummary, write_report
from tnn_train.report.pictures import figure_url, image_url
from tnn_train.report.plots import plot_confusion, plot_curves
from tnn_train.training.loop import TrainResult
from tnn_train.training.settings import flatten

SECTIONS = ["learning", "confusion", "classes", "calibration", "coverage", "mistakes", "configuration"]


def summarize(run: TrainResult, data: ImageData) -> RunSummary:
    checkpoint = load_checkpoint(run.best)
    indices = even_sample(len(data.train))

    def pixels(images: ImageSet) -> torch.Tensor:
        return Normalize(data.preprocessing)(torch.from_numpy(images.sample(len(images))))

    with torch.inference_mode():
        logits = checkpoint.model(pixels(data.test))
        embeddings = checkpoint.model.backbone(pixels(data.train))
    return RunSummary(
        "photos",
        run.history,
        Evaluation.of(logits, torch.from_numpy(data.test.labels)),
        data.test,
        data.class_names,
        {"data": {"seed": 0}, "model": dataclasses.asdict(checkpoint.config), "train": dataclasses.asdict(RECIPE)},
        checkpoint.model.head,
        data.train,
        Sample(data.train.labels[indices], data.class_names, lambda: embeddings),
        indices,
        {"torch": torch.__version__},
        "tnn-train --data photos --out 'my run'",
    )


def constructed(head: Head, class_names: list[str], channels: int = 3, epochs: int = 2) -> RunSummary:
    """Return a run of random answers on random images, with embeddings of four values."""
    random = np.random.default_rng(0)
    classes = len(class_names)
    labels = np.arange(3 * classes) % classes
    images = random.integers(0, 256, (len(labels), 8, 8, channels), dtype=np.uint8)
    preprocessing = Preprocessing(8, 8, channels, (0.0,) * channels, (1.0,) * channels)
    image_set = ImageSet(list(images), labels, preprocessing, images)
    logits = torch.from_numpy(random.normal(size=(len(labels), classes)))
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "learning_rate": 1e-3}
    history = [
        {"epoch": epoch, "val_accuracy": 0.5, "seconds": 70.0, "images_per_second": 100.0, **row}
        for epoch in range(1, epochs + 1)
    ]
    return RunSummary(
        "random",
        history,
        Evaluation.of(logits, torch.from_numpy(labels)),
        image_set,
        class_names,
        {"model": {"backbone": "none", "head": head.family}},
        head,
        image_set,
        Sample(labels, class_names, lambda: torch.randn(len(labels), 4)),
        np.arange(len(labels)),
    )


def written(run: RunSummary, folder: Path) -> str:
    write_report(folder / "report.html", run)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


def text(page: str) -> str:
    """Return what a reader sees."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(body).split())


class Balance(HTMLParser):
    """Collects the tags that are open, and the targets of the links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids |= {str(values["id"])} if "id" in values else set()
        self.targets |= {str(values["href"]).removeprefix("#")} if "href" in values else set()
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def check_page(page: str) -> Balance:
    """Check that a page is whole and needs nothing from elsewhere."""
    assert not re.search(r'(src|href)="(?!data:image/|#)', page)
    assert not re.search(r"<(script|link|iframe|object)|url\(|@import|https?://", page)
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.targets <= balance.ids
    return balance


def test_every_section_of_a_tversky_run_is_there(runs: dict[str, TrainResult], data: ImageData, tmp_path: Path) -> None:
    run = summarize(runs["tversky"], data)
    page = written(run, tmp_path)
    assert check_page(page).ids == {*SECTIONS, "prototypes"}
    seen = text(page)
    assert seen.startswith("photos: tiny, tversky head photos: tiny with a tversky head")
    low, high = run.test.accuracy_interval
    assert f"test accuracy {run.test.accuracy:.4f} 95% interval {low:.4f} to {high:.4f}" in seen
    assert f"{run.test.calibration().ece:.4f} ECE on the test set" in seen
    assert "3 epochs" in seen
    assert "tnn-train --data photos --out 'my run'" in seen
    assert "learning_rate 0.01" in seen
    assert f"versions torch {torch.__version__}" in seen
    assert f"alpha {run.head.alpha.item():.4f} 0.5000" in seen
    assert "Prototype 0, class cat" in seen
    assert "Prototype 1, class dog" in seen
    assert page.count('alt="training image') == 2 * 8


def test_a_linear_head_has_no_prototypes(runs: dict[str, TrainResult], data: ImageData, tmp_path: Path) -> None:
    page = written(summarize(runs["linear"], data), tmp_path)
    assert check_page(page).ids == set(SECTIONS)
    assert "rototype" not in text(page)
    assert "tversky" not in text(page)


def test_the_ratio_model_shows_its_logit_scale(runs: dict[str, TrainResult], data: ImageData, tmp_path: Path) -> None:
    seen = text(written(summarize(runs["ratio"], data), tmp_path))
    assert f"logit scale {load_checkpoint(runs['ratio'].best).model.head.logit_scale.item():.4f} 20.0000" in seen


def test_without_embeddings_the_weights_are_still_shown(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    run = dataclasses.replace(summarize(runs["tversky"], data), sample=None, sample_indices=None)
    page = written(run, tmp_path)
    check_page(page)
    assert "alpha" in text(page)
    assert "No embeddings of training images were given" in text(page)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["<b>bold</b>", "a \"quoted\" & 'odd' one", "$x^{2$", "\N{CAT FACE}\N{CJK UNIFIED IDEOGRAPH-732B}"]
    run = constructed(TverskyHead(4, 4), names)
    page = written(dataclasses.replace(run, name="<script>", command="tnn-train --data '<&>'"), tmp_path)
    check_page(page)
    for name in (*names, "<script>: none", "tnn-train --data '<&>'"):
        assert name in text(page)
    assert "<b>bold" not in page


def test_one_channel_one_epoch_and_many_prototypes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = TverskyHead(4, 3, TverskyConfig(num_features=6, num_prototypes=60, fixed=("theta",)))
    page = written(constructed(head, ["0", "1", "2"], channels=1, epochs=1), tmp_path)
    check_page(page)
    seen = text(page)
    assert "Shown are 50 of 60 prototypes" in seen
    assert "training time 1 min 10 s 1 epoch speed 100 images/s in training" in seen
    assert "theta 1.0000 1.0000, fixed" in seen
    assert page.count("<article>") == 50


def test_attributes_are_drawn_as_a_list_of_lists_that_folds(tmp_path: Path) -> None:
    names = ["cat", "dog", "<deer>", "car", "ship"]
    attributes = (Attribute((0, 1, 2), "alive & kicking"), Attribute((0, 1)), Attribute((3, 4)))
    config = TverskyConfig(6, opposites=1.0, prototype_space="feature", attributes=attributes)
    run = constructed(TverskyHead(4, 5, config), names)
    model = {"backbone": "none", "head": "tversky", "tversky": dataclasses.asdict(config)}
    page = written(dataclasses.replace(run, config={"model": model}), tmp_path)
    check_page(page)
    tree = page[page.index('<div class="tree scroll">') :]
    tree = tree[: tree.index("</div>")]
    assert tree.count("<ul>") == 3
    assert tree.count("<li>") == 5
    assert tree.count("<details open><summary>") == 2
    assert text(tree) == "all 5 classes alive & kicking 3 classes cat or dog <deer> car or ship"
    assert "tversky.attributes 3 of them" in text(page)


def test_folded_parts_of_a_tree_can_be_opened(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(200)]
    groups = tuple(Attribute(tuple(range(start, start + 4))) for start in range(0, 200, 4))
    larger = tuple(Attribute(tuple(range(start, start + 20))) for start in range(0, 200, 20))
    config = TverskyConfig(120, opposites=1.0, prototype_space="feature", attributes=groups + larger)
    page = written(constructed(TverskyHead(4, 200, config), names), tmp_path)
    check_page(page)
    assert page.count("<details open><summary>all 200 classes") == 1
    assert page.count("<details open><summary>class") == 10
    assert "class 0, class 1, class 2 or class 3" in text(page)


def test_many_classes_are_listed_by_their_worst(tmp_path: Path) -> None:
    page = written(constructed(LinearHead(4, 50), [f"class{number:02}" for number in range(50)]), tmp_path)
    check_page(page)
    seen = text(page)
    assert "50 classes in their order" in seen
    assert "the other 10 classes" in seen
    scores = [float(score) for score in re.findall(r"class\d\d(?: weak)? 3 (0\.\d+|1\.000)", seen)]
    assert len(scores) == 50
    assert scores == sorted(scores)


def test_weak_classes_are_marked_and_confusions_counted(tmp_path: Path) -> None:
    run = constructed(LinearHead(4, 2), ["good", "poor"])
    labels = np.repeat([0, 1], 30)
    answers = np.where(np.arange(60) < 50, 0, 1)
    images = ImageSet([], labels, run.test_images.preprocessing, np.zeros((60, 8, 8, 3), np.uint8))
    logits = 3 * torch.nn.functional.one_hot(torch.from_numpy(answers), 2).double()
    test = Evaluation.of(logits, torch.from_numpy(labels))
    seen = text(written(dataclasses.replace(run, test=test, test_images=images), tmp_path))
    assert "recall poor weak 30 0.500 1.000 0.333 good 30 0.750 0.600 1.000" in seen
    assert "true class predicted images poor good 20 " in seen
    assert "All 20 wrong answers, the surest first; the number is" in seen
    assert "good 0.95 right: poor" in seen


def test_a_perfect_model_says_so(tmp_path: Path) -> None:
    run = constructed(LinearHead(4, 2), ["a", "b"])
    perfect = torch.nn.functional.one_hot(torch.from_numpy(run.test.labels), 2).double()
    run = dataclasses.replace(run, test=Evaluation.of(perfect, torch.from_numpy(run.test.labels)))
    assert text(written(run, tmp_path)).count("No image of the test set was classified wrongly.") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": []}, "the history has no epochs"),
        ({"class_names": ["a"]}, "got 1 and 2 class names and logits"),
        ({"sample_indices": None}, "got 6 and 0 images of the sample and their indices"),
    ],
)
def test_a_summary_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    run = constructed(LinearHead(4, 2), ["a", "b"])
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(run, **change)  # type: ignore[arg-type]


def test_images_are_embedded_whole_or_as_thumbnails() -> None:
    def read(url: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))

    small = np.random.default_rng(0).integers(0, 256, (8, 6, 1), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(read(image_url(small))), small[..., 0])
    large = read(image_url(np.zeros((200, 100, 3), np.uint8)))
    assert (large.format, large.size, large.mode) == ("JPEG", (48, 96), "RGB")


def test_the_plots_of_runs_take_any_number_of_epochs_and_classes() -> None:
    run = constructed(LinearHead(4, 2), ["a", "b"], epochs=1)
    assert len(plot_curves({"one": run.history}).axes) == 2
    assert figure_url(plot_curves({})).startswith("data:image/png;base64,")
    named, unnamed = (plot_confusion(np.eye(n, dtype=np.int64), ["name"] * n).axes[0] for n in (40, 41))
    assert len(named.texts) == 40
    assert len(unnamed.texts) == 0


def test_settings_of_other_heads_are_left_out() -> None:
    config = {"model": {"head": "linear", "stem": "small", "tversky": {"alpha": 1}}, "train": {"names": ("a", "b")}}
    assert flatten(config) == {"model.head": "linear", "model.stem": "small", "train.names": ["a", "b"]}
    config["model"]["head"] = "tversky"
    assert flatten(config)["model.tversky.alpha"] == 1
    assert flatten({}) == {}
