"""The image without a builder: the Dockerfile is linted, and its steps run in a fresh root, which then serves."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from signal import Signals
from urllib.request import Request, urlopen

import pytest
from conftest import FIXTURES, Once, draw_photos
from dockerfiles import context, stages
from waiting import FOREVER

from tnn_runtime import Classifier
from tnn_runtime.commands.predict import build_parser

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
BUILD, IMAGE = stages(DOCKERFILE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NO_INDEX = re.compile(r"NewConnectionError|NameResolutionError|Temporary failure in name resolution")


def lint(dockerfile: str) -> str:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, "-"], input=dockerfile, capture_output=True, text=True, check=False)
    assert bool(result.returncode) == bool(result.stdout), result.stderr
    return result.stdout


@pytest.mark.parametrize("path", sorted(DOCKERFILE.parent.glob("Dockerfile*")), ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    assert lint(path.read_text()) == ""


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
        ("RUN install", "RUN sudo install", "DL3004"),
        ("EXPOSE 8000 8001", "EXPOSE 80000", "DL3011"),
        ('CMD ["/model"]', "CMD /model", "DL3025"),
    ],
)
def test_hadolint_finds_faults(good: str, bad: str, rule: str) -> None:
    text = DOCKERFILE.read_text()
    assert good in text
    assert rule in lint(text.replace(good, bad))


def test_the_base_has_a_python_that_the_project_supports() -> None:
    (version,) = re.findall(r"^ARG BASE=python:3\.(\d+)-slim-[a-z]+$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    assert int(version) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_the_image_is_run_without_rights_and_ended_by_a_signal() -> None:
    (user,) = IMAGE.values("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "Kubernetes cannot tell whether a name is that of root"
    assert IMAGE.values("STOPSIGNAL") == ["SIGTERM"]
    assert IMAGE.command("ENTRYPOINT")[:2] == ["tnn-runtime", "serve"]


def test_the_ports_of_the_image_are_open_to_others() -> None:
    command = IMAGE.command("ENTRYPOINT")
    ports = IMAGE.values("EXPOSE")[0].split()
    assert [command[command.index(name) + 1] for name in ("--http", "--grpc")] == [f"0.0.0.0:{port}" for port in ports]
    assert f":{ports[0]}/" in (ROOT / "docker" / "ready.py").read_text()


def test_the_extras_of_the_image_exist() -> None:
    texts = (DOCKERFILE.read_text(), (ROOT / "docs" / "containers.md").read_text())
    named = {extra for text in texts for extras in re.findall(r"EXTRAS=([\w,-]+)", text) for extra in extras.split(",")}
    assert {"cpu", "gpu", "serve"} <= named <= PROJECT["optional-dependencies"].keys()


def test_the_builder_gets_the_packages_and_no_more() -> None:
    sent = context(ROOT)
    assert {Path(file).parts[0] for file in sent} == {
        *("LICENSE", "README.md", "constraints.txt", "docker", "pyproject.toml"),
        *("tnn_export", "tnn_runtime", "tnn_train"),
    }
    assert not [file for file in sent if "__pycache__" in file]


@pytest.fixture(scope="module")
def root(once: Once) -> Path:
    """What the steps of the Dockerfile make, in a folder."""

    def make(folder: Path) -> Path:
        try:
            BUILD.build(folder, ROOT)
        except subprocess.CalledProcessError as error:
            if NO_INDEX.search(error.stderr):
                pytest.skip("no package index can be reached")
            raise AssertionError(error.stderr) from error
        (folder / "tmp").mkdir()
        return folder

    return once("image", make)


def started(root: Path, *command: object, **variables: str) -> subprocess.Popen[str]:
    """Start a program of the image, with the variables of the image and with others."""
    environment = {**IMAGE.environment(root), **variables}
    program = shutil.which(str(command[0]), path=environment["PATH"])
    assert program is not None
    assert Path(program).is_relative_to(root)
    return subprocess.Popen(
        [program, *map(str, command[1:])],
        cwd=root / "tmp",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(root: Path, *command: object, **variables: str) -> str:
    """Run a program of the image, and return what it prints."""
    with started(root, *command, **variables) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def canonical(pin: str) -> str:
    """Return a pinned package as all spellings of its name have it."""
    return re.sub(r"[-_]", "-", pin).lower()


def files_of(root: Path) -> dict[Path, int]:
    """Return when each file of a root was written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_tested_versions_are_installed_and_no_torch(root: Path) -> None:
    program = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    found = set(map(canonical, run(root, "python3", "-c", program).split()))
    tested = {canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert found - tested == {f"{PROJECT['name']}=={PROJECT['version']}"}
    names = {line.partition("==")[0] for line in found}
    assert "onnxruntime" in names
    assert not [name for name in names if re.fullmatch("torch.*|triton|tensorrt.*|nvidia-.*|onnxruntime-gpu|pip", name)]


@pytest.mark.slow
def test_importing_the_runtime_imports_nothing_heavy(root: Path) -> None:
    program = "import sys, tnn_runtime; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run(root, "python3", "-c", program).split()}
    assert "tnn_runtime" in loaded
    assert not loaded & {"grpc", "numpy", "onnxruntime", "PIL", "starlette", "tritonclient", "uvicorn"}


@pytest.mark.slow
def test_it_serves_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    bundle, image = FIXTURES / "bundle-v5", draw_photos(tmp_path / "photos", 1) / "cat" / "0.png"
    before = files_of(root)
    places = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-delay-s", "0"]
    server = started(root, *IMAGE.command("ENTRYPOINT"), f"photos={bundle}", *places)
    try:
        assert server.stdout is not None
        url = next((word for line in server.stdout for word in line.split() if word.startswith("http://")), None)
        assert url is not None, "it ended before it served"
        check = [word.replace("/opt/", f"{root}/opt/") for word in IMAGE.command("HEALTHCHECK")]
        assert run(root, *check, TNN_READY_URL=f"{url}/v2/health/ready") == ""
        with urlopen(Request(f"{url}/predict", image.read_bytes())) as answer:
            (best, *_) = json.load(answer)["predictions"]
        server.send_signal(Signals[IMAGE.values("STOPSIGNAL")[0]])
        assert server.wait(FOREVER) == 0
    finally:
        server.kill()
        server.communicate()
    with Classifier.load(bundle, "cpu") as classifier:
        ((expected, *_),) = classifier.predict([image])
    assert (best["label"], best["score"]) == (expected.label, pytest.approx(expected.score, abs=1e-6))
    assert files_of(root) == before


def test_documented_commands_are_those_of_the_server() -> None:
    page = (ROOT / "docs" / "containers.md").read_text().replace("\\\n", " ")
    given = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
        for line in block.splitlines()
        if line.startswith("docker run")
    ]
    assert len(given) > 3
    for words in given:
        (image,) = [number for number, word in enumerate(words) if re.fullmatch(r"tnn-runtime(:\w+)?", word)]
        arguments = words[image + 1 :] or IMAGE.command("CMD")
        options = build_parser().parse_args([*IMAGE.command("ENTRYPOINT")[1:], *arguments])
        assert options.bundles
