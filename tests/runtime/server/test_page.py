"""The page of a server in Chromium: an image goes in, and the answer with its explanation is there to be read."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from image_files import encode
from PIL import Image
from plain_bundle import plain_bundle
from served import served

from tnn_runtime import Classifier

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium; Debian: apt install chromium")

BUNDLE = FIXTURES / "bundle-v5"
IMAGE = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)))
BEST, OTHER = "cat", "dog"
"""The classes of the image, best first."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    plain = plain_bundle(folder / "plain")
    words = (f"pets:1={BUNDLE}", f"pets:2={BUNDLE}", f"plain={plain}", "--max-body-mb", 1)
    with served(folder, *words) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=60_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Visit:
    """A look at the page, with all that it asked for and all that went wrong.

    Args:
        browser: Where.
        url: Of the server.
        options: Of the context, such as ``color_scheme``.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self._context = browser.new_context(**options)
        self.page = self._context.new_page()
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def close(self) -> None:
        self._context.close()

    def settled(self, text: str) -> None:
        """Wait until the page says something."""
        sync_api.expect(self.page.locator("#said")).to_contain_text(text)
        sync_api.expect(self.page.locator("#answer")).not_to_have_attribute("aria-busy", "true")

    def classified(self, name: str = "a.png") -> str:
        """Wait for the answer to an image, and return its heading."""
        self.settled(f"{name}: ")
        return self.page.get_by_role("heading", level=2).inner_text()


Look = Callable[..., Visit]


@pytest.fixture
def look(chromium: Any, url: str) -> Iterator[Look]:
    visits: list[Visit] = []

    def get(url: str = url, **options: Any) -> Visit:
        visits.append(Visit(chromium, url, **options))
        return visits[-1]

    yield get
    for visit in visits:
        visit.close()


def drop(page: Any, content: bytes = IMAGE, name: str = "a.png", event: str = "drop") -> None:
    """Drop a file, or paste it."""
    page.evaluate(
        """([content, name, event]) => {
            const files = new DataTransfer();
            files.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name));
            const options = {bubbles: true, cancelable: true};
            document.getElementById("drop").dispatchEvent(event === "paste"
                ? new ClipboardEvent(event, {...options, clipboardData: files})
                : new DragEvent(event, {...options, dataTransfer: files}));
        }""",
        [base64.b64encode(content).decode(), name, event],
    )


def paste(page: Any) -> None:
    drop(page, event="paste")


def choose(page: Any) -> None:
    """Choose a file; the keyboard reaches what one chooses it with."""
    chooser = page.get_by_label("choose a file")
    chooser.focus()
    sync_api.expect(chooser).to_be_focused()
    chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": IMAGE})


@pytest.mark.parametrize("give", [drop, paste, choose])
def test_an_image_is_explained(look: Look, url: str, give: Callable[[Any], None]) -> None:
    with Classifier.load(BUNDLE, "cpu", threads=1) as classifier:
        ((best, *_),) = classifier.explain([IMAGE])
    visit = look()
    give(visit.page)
    assert visit.classified() in (f"{best.label} ({best.score:.1%})", f"Rejected: {best.label} ({best.score:.1%})")
    tops = [visit.page.locator(each).first.bounding_box()["y"] for each in ("h2", ".sentence", "figure", ".charts")]
    assert tops == sorted(tops)
    assert tops[1] < visit.page.viewport_size["height"]
    images = visit.page.locator("#answer img").evaluate_all("all => all.map((one) => [one.naturalWidth > 0, one.alt])")
    assert len(images) > 3
    assert all(drawn and alt for drawn, alt in images)
    assert "Where" in visit.page.locator("figure figcaption").nth(1).inner_text()
    assert visit.errors == []
    assert [one for one in visit.requested if not one.startswith((f"{url}/", "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 31)")])
def test_all_is_in_sight_on_every_screen(look: Look, width: int, scheme: str, background: str) -> None:
    visit = look(viewport={"width": width, "height": 800}, color_scheme=scheme)
    drop(visit.page)
    visit.classified()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.locator("h2").bounding_box()["y"] < 800
    for part in ("body", ".drawn"):
        shown = visit.page.locator(part).first.evaluate("one => getComputedStyle(one).backgroundColor")
        assert shown == background


def test_a_screen_reader_is_told_what_is_there(look: Look) -> None:
    page = look().page
    drop(page)
    for role, name in [("combobox", "Model"), ("combobox", "Compare with"), ("button", "choose a file")]:
        sync_api.expect(page.get_by_role(role, name=name)).to_be_visible()
    sync_api.expect(page.get_by_role("status")).to_contain_text(re.compile(rf"a\.png: .*{BEST} \([\d.]+%\)"))
    sync_api.expect(page.get_by_role("region", name="Answer").get_by_role("heading", level=2)).to_be_visible()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGE[:200], "the file ends early"),
        (b"hello", "it is a text file"),
        (b"", "The file is empty. Choose an image file."),
        (bytes(2 << 20), "expected at most 1048576 bytes"),
    ],
    ids=["cut off", "text", "empty", "too large"],
)
def test_what_is_no_image_is_told_and_the_next_one_works(look: Look, content: bytes, message: str) -> None:
    visit = look()
    drop(visit.page)
    visit.classified()
    drop(visit.page, content, "bad.jpg")
    visit.settled(message)
    assert visit.page.locator("#said").inner_text().startswith("bad.jpg: ")
    assert visit.page.locator("#answer").inner_text() == ""
    drop(visit.page, name="next.png")
    assert BEST in visit.classified("next.png")


def test_what_is_no_file_is_told(look: Look) -> None:
    visit = look()
    visit.page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: new DataTransfer()}))"
    )
    visit.settled("This is no file.")


def test_models_and_versions_can_be_chosen(look: Look) -> None:
    visit = look()
    drop(visit.page)
    visit.classified()
    models = visit.page.get_by_label("Model")
    assert models.locator("option").all_inner_texts() == ["pets (version 1)", "pets (version 2)", "plain (version 1)"]
    for model, explains in [("plain (version 1)", False), ("pets (version 2)", True)]:
        models.select_option(label=model)
        sync_api.expect(visit.page.locator(".charts")).to_be_visible(visible=explains)
        sync_api.expect(visit.page.get_by_label("Compare with")).to_be_visible(visible=explains)
        assert BEST in visit.classified() or not explains
    asked = [one for one in visit.requested if re.search("/(explain|predict)", one)]
    assert [re.search(r"/(explain|predict)\?model=(\w+)&version=(\d)", one).groups() for one in asked] == [
        ("explain", "pets", "1"),
        ("predict", "plain", "1"),
        ("explain", "pets", "2"),
    ]


def test_a_model_without_explanations_tells_its_scores(look: Look) -> None:
    visit = look()
    visit.page.get_by_label("Model").select_option(label="plain (version 1)")
    drop(visit.page)
    visit.settled("a.png: ")
    said = visit.page.locator("#answer").inner_text()
    assert "The model is not sure enough of this image." in said or "This model gives no explanations." in said
    assert visit.page.locator("#answer img").evaluate("one => one.decode().then(() => one.naturalWidth)") == 20
    assert visit.errors == []


@pytest.mark.parametrize(
    ("against", "asked", "said"),
    [
        (OTHER, [f"&against={OTHER}"], "a.png: "),
        (BEST, [f"&against={BEST}", ""], f"It cannot be compared with {BEST}"),
        ("", [""], "a.png: "),
    ],
    ids=["another class", "itself", "the next best class"],
)
def test_the_answer_is_compared_with_a_class(look: Look, against: str, asked: list[str], said: str) -> None:
    visit = look()
    drop(visit.page)
    visit.classified()
    visit.requested.clear()
    with visit.page.expect_response(lambda answer: answer.ok and "/explain?" in answer.url):
        visit.page.get_by_label("Compare with").select_option(against)
    visit.settled(said)
    assert [re.sub(".*&name=a.png", "", one) for one in visit.requested if "/explain?" in one] == asked
    assert f"{BEST} rather than {OTHER}" in visit.page.locator(".sentence").inner_text()


def test_a_token_is_asked_for(look: Look, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with served(tmp_path, BUNDLE, "--token-file", tmp_path / "token") as url:
        visit = look(url)
        visit.settled("This server answers only with its token.")
        drop(visit.page)
        token = visit.page.get_by_label("Token of this server")
        for given, said in [("wrong", "This is not the token of the server."), ("secret", f"{BEST} (")]:
            token.fill(given)
            token.press("Enter")
            visit.settled(said)
        sync_api.expect(token).to_be_hidden()


def test_a_server_that_is_gone_may_come_back(look: Look, tmp_path: Path) -> None:
    again = "Try again"
    with served(tmp_path, BUNDLE) as url:
        visit = look(url)
        drop(visit.page)
        visit.classified()
    drop(visit.page, name="late.png")
    visit.settled("The server does not answer.")
    with served(tmp_path, BUNDLE, http=url.removeprefix("http://")):
        visit.page.get_by_role("button", name=again).click()
        assert BEST in visit.classified("late.png")
        sync_api.expect(visit.page.get_by_role("button", name=again)).to_be_hidden()


def test_nothing_else_may_run_or_be_loaded(look: Look) -> None:
    page = look().page
    page.evaluate(
        """() => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", (event) => {
                refused.push(event.effectiveDirective);
                document.body.dataset.refused = refused.sort();
            });
            const script = document.createElement("script");
            script.textContent = "document.title = 'changed'";
            document.body.append(script);
            new Image().src = "http://192.0.2.1/a.png";
            fetch("http://192.0.2.1/").catch(() => null);
        }"""
    )
    refused = "connect-src,img-src,script-src-elem"
    sync_api.expect(page.locator("body")).to_have_attribute("data-refused", refused)
    assert page.title() == "Classify an image"
