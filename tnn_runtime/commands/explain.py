"""The command ``tnn-runtime explain``."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tnn_runtime.backends.devices import DEVICES
from tnn_runtime.bulk import answers_for_files
from tnn_runtime.bundle.manifest import FEATURE_MAPS
from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.bundle.storage import write_bytes, write_text
from tnn_runtime.classifier import Classifier
from tnn_runtime.commands.files import Found, find_files, refuse_unusable
from tnn_runtime.console import Parser, any_path, say
from tnn_runtime.drawing import Item, draw, item_of, page
from tnn_runtime.drawing.words import sentence
from tnn_runtime.errors import InputError, UsageError
from tnn_runtime.replies import Answer
from tnn_runtime.text import printable

__all__ = ["add_explain"]

_PAGE, _PICTURE = (".html", ".htm"), ".png"
_MOST = 1000
"""Images on a page, at most: more would be too large for a browser."""

_EPILOG = """examples:
  tnn-runtime explain runs/photos-bundle holiday.jpg -o why.png
  tnn-runtime explain runs/photos-bundle photos/cat -o why.html --against dog

Bundles that were exported with --outputs feature_maps also show where in the image it comes from.

A page is one file that needs no network. With .png, one image gives one picture, why.png, and several give a numbered
set: why-1.png, why-2.png and so on, in the order of the images."""


def add_explain(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Add the command, and return its parser."""
    parser = commands.add_parser(
        "explain",
        help="draw why image files get their classes",
        description="Draw why image files get their classes, and not another one: on a page, or as pictures. A folder "
        "stands for every file below it. Files that cannot be used are named on standard error, and make the exit code "
        "1; the others are drawn.",
        epilog=_EPILOG,
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("images", type=any_path, nargs="+", help="image files or folders")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="page.html for a page, why.png for pictures"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--against", metavar="CLASS", help="class to compare with; the best other one if not given")
    parser.add_argument("--top-k", type=int, default=3, help="classes whose scores to show")
    parser.add_argument("--num-features", type=int, default=5, help="features to show")
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--threads", type=int, help="CPU threads, all usable cores if not given")
    parser.add_argument(
        "--reject", action="store_true", help="mark images whose score is below the bundle's threshold as rejected"
    )
    parser.set_defaults(run=_explain)
    return parser


def _explain(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    out: Path = options.out
    is_page = out.suffix.lower() in _PAGE
    if not is_page and out.suffix.lower() != _PICTURE:
        raise UsageError(
            f"got -o {printable(str(out))}; expected a name that ends with .html for a page, or with .png for pictures"
        )
    found = find_files(options.images)
    total = len(found.files) + len(found.errors)
    if is_page and len(found.files) > _MOST:
        raise UsageError(
            f"got {len(found.files)} images; a page shows at most {_MOST}: name fewer of them, or draw pictures (-o "
            f"{out.with_suffix(_PICTURE).name})"
        )
    targets = [out] if is_page else _numbered(out, len(found.files))
    for target in targets:
        check_file(target, "-o", overwrite=options.overwrite)
    items: list[Item] = []
    with (
        Classifier.load(
            options.bundle, options.device, threads=options.threads, public_key=options.public_key
        ) as classifier,
        tqdm(total=len(found.files), desc="explaining", unit="image", disable=None, delay=2) as progress,
    ):
        for place, item in _explained(classifier, found, options):
            progress.update()
            if item is None:
                continue
            say(f"{item.name}  {''.join(sentence(item))}")
            if is_page:
                items.append(item)
            else:
                _write_picture(targets[place], item)
    if items:
        write_text(out, page(items))
        say(f"wrote {out}")
    refuse_unusable("tnn-runtime", found, total)


def _numbered(out: Path, count: int) -> list[Path]:
    """Return where the pictures of so many images go: one keeps the name, and several are numbered from 1."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{place:0{len(str(count))}}{out.suffix}") for place in range(1, count + 1)]


def _explained(classifier: Classifier, found: Found, options: argparse.Namespace) -> Iterator[tuple[int, Item | None]]:
    """Yield the place of each file and what to draw of it; what is wrong with a file goes into ``found``."""
    maps = FEATURE_MAPS in classifier.info["outputs"]
    asked: dict[str, Any] = {"num_features": options.num_features, "against": options.against, "maps": maps}
    classifier.explain([], options.top_k, **asked)  # tells what is wrong with the options or the bundle

    def submit(path: Path) -> Future[Answer]:
        return classifier.submit(path, options.top_k, answer="all", reject=options.reject, timeout_s=math.inf, **asked)

    for place, (path, answer, error) in enumerate(answers_for_files(classifier, found.files, submit)):
        item = None
        if answer is not None:
            try:
                item = item_of(classifier, answer, path, printable(str(path)))
            except InputError as gone:
                error = str(gone)
        if error:
            found.errors.append(error)
        yield place, item


def _write_picture(target: Path, item: Item) -> None:
    buffer = io.BytesIO()
    draw(
        item.explanations,
        item.picture,
        item.exemplars,
        name=item.name,
        rejected=item.rejected,
        reject_score=item.reject_score,
    ).save(buffer, "png")
    write_bytes(target, buffer.getbuffer())
    say(f"wrote {target}")
