"""The health check of the image: ready or not, over HTTP and TLS, whatever proxy the container is told of."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

CHECK = Path(__file__).parents[2] / "docker" / "ready.py"


@contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the address of a server that answers whether it is ready with a status, and all else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}/v2/health/ready"
        finally:
            server.shutdown()
            thread.join()


def check(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHECK]
    return subprocess.run(
        command, env={"TNN_READY_URL": url, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A certificate that nobody trusts, and that names another host."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.example.com")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1), (500, 1)])
def test_the_code_says_whether_the_server_is_ready(status: int, code: int, secured: bool, tls: ssl.SSLContext) -> None:
    with answering(status, tls if secured else None) as url:
        result = check(url)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(f"not ready: {url}: HTTP Error {status}") if code else not result.stderr


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_is_asked(name: str) -> None:
    with answering(200) as url, answering(503) as proxy:
        assert check(url, **{name: proxy}).returncode == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v2/health/ready", "https://127.0.0.1:1", "nonsense"])
def test_what_does_not_answer_is_not_ready(url: str) -> None:
    result = check(url)
    assert result.returncode == 1
    assert result.stderr.startswith(f"not ready: {url}: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_port_of_another_protocol_is_not_ready(tls: ssl.SSLContext) -> None:
    with answering(200, tls) as url:
        result = check(url.replace("https", "http"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
