"""Every command of the README and every example runs as it is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import forked
import pytest
from conftest import draw_photos
from served import served

from tnn_export.commands.export import COMMANDS, EXPORT
from tnn_runtime.commands.predict import build_parser
from tnn_train.commands import prototypes, unfold
from tnn_train.commands.arguments import parse
from tnn_train.commands.audit import make_parser as make_audit_parser
from tnn_train.commands.sweep import _Sweep
from tnn_train.commands.train import _Training

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def run_forked(function: Callable[..., Any], *arguments: object, cwd: Path) -> str:
    """Run what imports torch, forked from a process that has it, and return what it prints."""
    result = forked.run(function, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_line(line: str, cwd: Path) -> str:
    """Run a line of a page, and return what it prints."""
    words = shlex.split(line, comments=True)
    if words[:1] in (["tnn-train"], ["tnn-export"]):
        (command,) = entry_points(group="console_scripts", name=words[0])
        return run_forked(command.load(), words[1:], cwd=cwd)
    return run("bash", "-euo", "pipefail", "-c", line, cwd=cwd).stdout


def quicker(text: str, changes: dict[str, str]) -> str:
    """Return commands that measure and learn for a shorter time."""
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    return text


def shell_of_serving() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", SERVING, flags=re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def serving(tmp_path: Path, bundles: dict[str, Path]) -> Path:
    """A folder as the page on serving takes it: photos, their bundle and another one, and the examples."""
    draw_photos(tmp_path / "photos")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos-bundle").symlink_to(bundles["tversky"])
    (tmp_path / "runs" / "photos-bundle-2").symlink_to(bundles["ratio"])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_the_options_of_documented_trainings_exist(tmp_path: Path) -> None:
    count = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        for number, toml in enumerate(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)):
            file = tmp_path / f"{number}.toml"
            file.write_text(toml)
            assert parse(_Training, "tnn-train", "", ["--config", str(file), "--out", "run"]).train.ema_decay == 0.999
        for line in re.findall(r"(?:^ *tnn-train|-m tnn_train) (.*)$", text, flags=re.MULTILINE):
            words = [re.sub(r"\$\w+", "1", word) for word in shlex.split(line)]
            if words[0] == "compare":
                continue
            if words[0] == "audit":
                assert make_audit_parser().parse_args(words[1:]).runs
                continue
            if words[0] in ("unfold", "prototypes"):
                parsers = {"unfold": unfold, "prototypes": prototypes}
                assert parsers[words[0]].make_parser().parse_args(words[1:]).out
                continue
            kind = _Sweep if words[0] == "sweep" else _Training
            if "--config" in words:
                words += ["--data", "photos"]
                words[words.index("--config") + 1] = str(tmp_path / "0.toml")
            assert parse(kind, "tnn-train", "", words[words[0] == "sweep" :]).out
            count += 1
    assert count > 8


def test_the_options_of_documented_exports_exist() -> None:
    count = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in re.findall(r"^ *tnn-export (.*)$", block, flags=re.MULTILINE):
                words = shlex.split(line, comments=True)
                name = words[0] if words[0] in COMMANDS else EXPORT
                COMMANDS[name][0]().parse_args(words[words[0] in COMMANDS :])
                count += 1
    assert count > 8


def test_the_options_of_documented_runtime_commands_exist() -> None:
    count = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            text = block.replace("\\\n", "")
            for line in re.findall(r"^ *(?:taskset -c \S+ )?tnn-runtime (.*)$", text, flags=re.MULTILINE):
                build_parser().parse_args(shlex.split(line.partition(">")[0], comments=True))
                count += 1
    assert count > 7


@pytest.mark.slow
def test_the_commands_for_your_own_images(tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos")
    (shell,) = [block for block in blocks("sh") if "photos" in block]
    shell = quicker(shell, {"--epochs 10": "--epochs 2", "--threads 1": "--threads 1 --processes 1 --blocks 2"})
    printed = "".join(run_line(line, tmp_path) for line in shell.splitlines())
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 41
    assert printed.count("passed") == 6
    assert "A/B" in printed


def python_of_serving(word: str) -> str:
    """Return the program of the page that has a word in it."""
    (found,) = (text for text in re.findall(r"```python\n(.*?)```", SERVING, flags=re.DOTALL) if word in text)
    return str(found)


def test_the_python_of_serving_runs(serving: Path) -> None:
    printed = run(sys.executable, "-c", python_of_serving(".submit("), cwd=serving).stdout.splitlines()
    assert len(printed) == 2
    assert all("Prediction(label=" in line for line in printed)
    run(sys.executable, "-c", python_of_serving(".reload("), cwd=serving)


def test_the_python_of_maps_runs(serving: Path, mapped: dict[str, Path]) -> None:
    (serving / "runs" / "photos-mapped").symlink_to(mapped["tversky"])
    block = f"from tnn_runtime import Classifier\n{python_of_serving('maps=True')}"
    printed = run(sys.executable, "-c", block, cwd=serving).stdout
    assert re.match(r"<Maps of \d+x\d+ places, 3 parts and 5 features>\n\[\[", printed)


def test_the_python_of_exemplars_runs(serving: Path) -> None:
    block = f"from tnn_runtime import Classifier\n{python_of_serving('.exemplars(')}"
    printed = run(sys.executable, "-c", block, cwd=serving).stdout
    assert re.match(r"\(('(cat|dog)'(, )?)+\) (None|Seen in )", printed)


@pytest.mark.slow
def test_the_commands_of_serving_run(serving: Path) -> None:
    lines = [line for line in shell_of_serving() if line.startswith("python ")]
    soak = {"--images 20000 --tolerance 100": "--images 2000 --tolerance 6000"}
    changes = {**soak, "--blocks 5": "--blocks 2 --seconds 0.1"}
    for line in quicker("\n".join(lines), changes).splitlines():
        run_line(line, serving)
    assert len((serving / "labels.csv").read_text().splitlines()) == 41
    assert (serving / "explanation.png").exists()
    assert len(lines) == 6


ASKING = """
import asyncio, httpx

async def main():
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for path in ("/photos/", "/photos/v2/models/photos/ready", "/photos/metrics"):
            print((await client.get(path)).status_code)
        answer = await client.post("/photos/predict?top_k=1", content=open("photos/cat/0.png", "rb").read())
        print(answer.json()["predictions"][0]["label"])

asyncio.run(main())
print(deployment.health.reason)
"""


def test_the_application_of_serving_runs(serving: Path) -> None:
    program = python_of_serving("Mount(") + ASKING
    *statuses, label, reason = run(sys.executable, "-c", program, cwd=serving).stdout.splitlines()
    assert (statuses, label in ("cat", "dog")) == (["200"] * 3, True)
    assert "is closed" in reason


def test_the_requests_of_the_page_on_the_server_run(serving: Path) -> None:
    page = (ROOT / "docs" / "server.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("curl ")]
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    with served(serving, f"photos={serving / 'runs' / 'photos-bundle'}") as url:
        here = [line.replace("http://127.0.0.1:8000", url).replace("curl ", "curl --fail --silent ") for line in lines]
        printed = [run("bash", "-c", line, cwd=serving).stdout for line in here]
        labels = run(sys.executable, "-c", program.replace("127.0.0.1:8000", url[len("http://") :]), cwd=serving).stdout
    assert len(json.loads(printed[0])["predictions"]) == 2
    assert "rather than" in (serving / "why.html").read_text()
    assert b'"labels"' in (serving / "answer.bin").read_bytes()
    assert json.loads(printed[3])["name"] == "photos"
    assert "tnn_images_total" in printed[4]
    assert len(lines) == 5
    assert re.match(r"\[\[b'(cat|dog)'", labels)


@pytest.mark.slow
def test_the_python_of_the_readme_is_the_quickstart_and_runs(tmp_path: Path) -> None:
    block, similarity = blocks("python")
    assert run_forked(exec, similarity, cwd=tmp_path) == "torch.Size([10])\n"
    source = (ROOT / "examples" / "quickstart.py").read_text()
    assert source.split('"""\n', 1)[1].strip() == block.strip()
    draw_photos(tmp_path / "photos")
    (tmp_path / "quickstart.py").write_text(quicker(source, {"epochs=10": "epochs=2"}))
    printed = run_forked(forked.python, str(tmp_path / "quickstart.py"), cwd=tmp_path)
    assert "lowered head, onnx, torchscript passed" in printed
    assert re.search("^(cat|dog): for it speaks? '", printed, flags=re.MULTILINE)


def test_the_commands_for_installing_exist() -> None:
    clone, *others = (block for block in blocks("sh") if "photos" not in block)
    assert others == []
    assert clone.splitlines()[1:] == ["make demo"]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
        for script in re.findall(r"python (examples/\w+\.py)", page.read_text()):
            assert (ROOT / script).exists(), (page, script)
        assert not re.search(r"@[A-Z0-9]+@", page.read_text()), page
    for path in re.findall(r"`((?:tnn_\w+|tests)/[\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    options = ["--epochs", "1", "--limit", "120", "--image-size", "8", "--blocks", "2", "--out", "out"]
    options += ["--backbone", "tiny"]
    demo = str(ROOT / "examples" / "demo")
    printed = run_forked(forked.python, demo, *options, cwd=tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["dataset"] == "digits"
    for values in summary["heads"].values():
        assert values["runtime_accuracy"] == values["test_accuracy"]
        assert all(parity["passed"] for parity in values["parity"].values())
        assert values["parity"]["onnx"]["samples"]["real"] == 120
        assert (tmp_path / values["checkpoint"] / "config.json").exists()
        assert (tmp_path / values["bundle"] / "manifest.json").exists()
    for part in (summary["latency"], summary["latency"]["all_threads"]):
        assert set(part["batch"]) == {"1", "32"}
        for entry in part["batch"].values():
            assert set(entry["tversky_ms"]) == set(entry["linear_ms"]) == {"p50", "p90", "p99"}
            assert entry["ratio_ci95"][0] <= entry["ratio"] <= entry["ratio_ci95"][1]
            assert entry["aa_ratio"] > 0
    html = (tmp_path / "out" / "report.html").read_text()
    opening, rest = html.split("</article>")
    assert " comes from. " in opening
    assert opening.count("data:image/png;base64,") >= 1 + 2  # the image, and its map with the scale
    assert opening.count('alt="training image of the class') > 0
    assert rest.count("data:image/png;base64,") == 4 * (1 + 2) + 1 + 2 + 1
    for head, formula in (
        ("tversky", "common \N{MINUS SIGN} input only \N{MINUS SIGN} prototype only"),
        ("linear", "supporting \N{MINUS SIGN} opposing + bias"),
    ):
        assert html.count(f"<h3>{head}: ") == 4
        assert len(re.findall(rf"logit \S+ = {re.escape(formula)}", html)) == 4
    assert set(re.findall(r'(?:src|href)="(?!data:)([^"]*)', html)) == {"run-tversky/report.html#prototypes"}
    assert 'id="prototypes"' in (tmp_path / "out" / "run-tversky" / "report.html").read_text()
    ends = [f"{100 * end:+.2f}" for end in summary["difference"]["ci95"]]
    assert f"{ends[0]} to {ends[1]} points" in html
    assert len(list((tmp_path / "out" / "test-images").rglob("*.png"))) == 120
    hints = printed.split("try next:\n")[1].strip().splitlines()
    assert len(hints) == 3
    run("bash", "-c", hints[0], cwd=tmp_path)
    again = forked.run(forked.python, demo, *options, cwd=tmp_path)
    assert again.returncode == 1
    assert "demo: error: out already exists" in again.stderr
