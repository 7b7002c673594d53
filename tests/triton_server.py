"""A real Triton to test with: ``python tests/triton_server.py WHEEL FOLDER`` makes a folder of it from a wheel on PyPI.

    pip download --no-deps nvidia-pytriton==0.7.0
    python tests/triton_server.py nvidia_pytriton-0.7.0-*.whl triton
    TNN_TRITON=$PWD/triton pytest tests/export/triton
    triton/tritonserver --model-repository repository --disable-auto-complete-config

The wheel (Linux, x86-64) has Triton 2.51 with its Python backend only. The folder adds what is missing: that backend's
process for the Python that makes it, a Python with NumPy 1.26 and Pillow alone, and a small backend for ONNX models.
"""

from __future__ import annotations

import argparse
import http.client
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from waiting import FOREVER, until

PACKAGES = ("numpy<2", f"pillow=={version('pillow')}", "onnxruntime")
ONNX_BACKEND = Path(__file__).with_name("triton_onnxruntime.py")


@dataclass(frozen=True)
class Server:
    """A Triton that runs.

    Args:
        http: Where it speaks HTTP, ``127.0.0.1:PORT``.
        grpc: Where it speaks gRPC.
        log: What it prints.
    """

    http: str
    grpc: str
    log: Path


@contextmanager
def running(triton: Path, repository: Path, log: Path, *options: str) -> Iterator[Server]:
    """Yield a server that has loaded a repository; one that refuses it fails, with what it printed.

    It runs in the folder of its log.
    """
    http_port, grpc_port = _free_ports(2)
    address = "127.0.0.1"
    command = [triton / "tritonserver", "--model-repository", repository, "--disable-auto-complete-config", *options]
    command += ["--http-address", address, "--grpc-address", address, "--allow-metrics=false"]
    command += ["--http-port", http_port, "--grpc-port", grpc_port]
    server = Server(f"{address}:{http_port}", f"{address}:{grpc_port}", log)
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        until(lambda: process.poll() is not None or _is_ready(server.http))
        assert process.poll() is None, f"Triton refuses {repository}:\n{log.read_text()}"
        yield server
    finally:
        process.terminate()
        process.wait(FOREVER)


def _is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=FOREVER)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def make(wheel: Path, folder: Path) -> None:
    """Make the folder: what the wheel has, a Python of its own, and ``tritonserver``, a script that starts it."""
    folder = folder.absolute()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            folder,
            [
                name
                for name in archive.namelist()
                if name.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/"))
            ],
        )
    triton = folder / "pytriton" / "tritonserver"
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / python_version / "triton_python_backend_stub"
    started = shutil.copy(stub, triton / "backends" / "python")
    for program in (Path(started), triton / "bin" / "tritonserver"):
        program.chmod(0o755)
    (triton / "backends" / "onnxruntime").mkdir()
    shutil.copyfile(ONNX_BACKEND, triton / "backends" / "onnxruntime" / "model.py")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "python"], check=True)
    python = folder / "python" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *PACKAGES], check=True)
    # The process of the backend takes the first python3 on the path for its own, and no notice of PYTHONPATH.
    libraries = f"{folder / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    command = [triton / "bin" / "tritonserver", "--backend-directory", triton / "backends"]
    script = f"""#!/bin/sh
export LD_LIBRARY_PATH={shlex.quote(libraries)}
export PATH={shlex.quote(str(python.parent))}:"$PATH"
exec {shlex.join(map(str, command))} "$@"
"""
    (folder / "tritonserver").write_text(script)
    (folder / "tritonserver").chmod(0o755)


def main() -> None:
    """Make the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="nvidia_pytriton-0.7.0-*.whl")
    parser.add_argument("folder", type=Path, help="folder to make")
    options = parser.parse_args()
    make(options.wheel, options.folder)


if __name__ == "__main__":
    main()
