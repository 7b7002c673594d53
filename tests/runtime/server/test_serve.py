"""The command ``tnn-runtime serve``: the protocol as clients see it, and how it starts, reloads and ends."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from conftest import FIXTURES, draw_photos
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from probe import CHECKS, Known, Server, run
from served import NO_DELAY, Served, serving
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import FOREVER, until

from tnn_runtime import Classifier, __main__

BUNDLE, OTHER = FIXTURES / "bundle-v5", FIXTURES / "bundle-v4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def image(folder: Path) -> bytes:
    return (draw_photos(folder / "photos", 1) / "cat" / "0.png").read_bytes()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, f"photos={BUNDLE}", "--device", "cpu", "--grpc", "127.0.0.1:0", *NO_DELAY) as served:
        yield served
        assert served.end() == 0
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="module")
def known(folder: Path, image: bytes) -> Known:
    return Known.of(BUNDLE, folder / "photos" / "cat" / "0.png")


@pytest.mark.parametrize("name", CHECKS)
def test_the_protocol(served: Served, known: Known, name: str) -> None:
    server = Server(served.http, served.grpc, "photos", "photos")
    assert run(server, known, name) == CHECKS[name][0]


class TestConnections:
    def test_a_body_that_does_not_come_leaves_others_alone(self, served: Served, image: bytes) -> None:
        address = served.http.rsplit(":", 1)
        with socket.create_connection((address[0], int(address[1])), FOREVER) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"a" * 10)
            assert served.post("/predict", content=image).status_code == 200

    def test_a_thousand_idle_connections_leave_room(self, served: Served, image: bytes) -> None:
        host, port = served.http.rsplit(":", 1)
        idle = []
        try:
            for number in range(1000):
                idle.append(socket.create_connection((host, int(port)), FOREVER))
                if number % 2:
                    idle[-1].sendall(b"POST /predict HTTP/1.1\r\nHost:")
            assert served.post("/predict", content=image).status_code == 200
        finally:
            for one in idle:
                one.close()

    @pytest.mark.parametrize(
        "sent",
        [
            b"no HTTP\r\n\r\n",
            b"POST / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000,
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef",
            b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        ],
    )
    def test_what_is_no_http_is_refused(self, served: Served, sent: bytes) -> None:
        host, port = served.http.rsplit(":", 1)
        with socket.create_connection((host, int(port)), FOREVER) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == b"" if sent.startswith(b"HEAD") else body.startswith(b'{"error": "the request is not valid')

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("GET", "/v3", 404), ("GET", "/v2/", 404), ("PUT", "/v2", 405)]
    )
    def test_what_is_not_there_is_told_in_json(self, served: Served, method: str, path: str, status: int) -> None:
        answer = served.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"].startswith(f"{method} {path}: ")


class TestEnding:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_what_was_taken_is_answered(self, tmp_path: Path, image: bytes, workers: str) -> None:
        with serving(tmp_path, BUNDLE, "--device", "cpu", "--workers", workers, *NO_DELAY) as served:
            host, port = served.http.rsplit(":", 1)
            connections = [socket.create_connection((host, int(port)), FOREVER) for _ in range(12)]
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\nExpect: 100-continue\r\n\r\n"
            for connection in connections:
                connection.sendall(head.encode())
            for connection in connections:
                assert b"100 Continue" in connection.recv(1000)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: served.log.read_text().count("draining") == int(workers))
            for connection in connections:
                connection.sendall(image)
            for connection in connections:
                answer = b"".join(iter(lambda connection=connection: connection.recv(10_000), b""))
                assert answer.startswith(b"HTTP/1.1 200 OK"), answer
                connection.close()
            assert served.process.wait(FOREVER) == 0

    def test_readiness_goes_first(self, tmp_path: Path, image: bytes) -> None:
        options = ("--ready-delay-s", str(FOREVER), "--grpc", "127.0.0.1:0")
        with serving(tmp_path, f"p={BUNDLE}", "--device", "cpu", *options) as served:
            served.process.send_signal(signal.SIGTERM)
            until(lambda: served.get("/v2/health/ready").status_code == 503)
            assert served.get("/v2/models/p/ready").status_code == 503
            with grpc.insecure_channel(served.grpc) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
                assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
            answer = served.post("/predict", content=image)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert served.get("/v2/health/live").status_code == 200
            assert served.end() == 0  # the second signal does not wait

    def test_an_interrupt_does_not_wait(self, tmp_path: Path) -> None:
        with serving(tmp_path, BUNDLE, "--device", "cpu", "--ready-delay-s", str(4 * FOREVER)) as served:
            assert served.end(signal.SIGINT) == 0

    def test_a_third_signal_ends_everything(self, tmp_path: Path) -> None:
        with serving(tmp_path, BUNDLE, "--device", "cpu", "--drain-s", str(4 * FOREVER)) as served:
            host, port = served.http.rsplit(":", 1)
            with socket.create_connection((host, int(port)), FOREVER) as stuck:
                stuck.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
                until(lambda: served.get("/metrics").status_code == 200)
                served.process.send_signal(signal.SIGINT)
                until(lambda: "draining" in served.log.read_text())
                assert served.end() == 130
            assert "interrupted" in served.log.read_text()


class TestReloading:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_hangup_loads_what_is_there_now(self, tmp_path: Path, image: bytes, workers: str) -> None:
        bundle = tmp_path / "photos"
        shutil.copytree(BUNDLE, bundle)
        with serving(tmp_path, bundle, "--device", "cpu", "--workers", workers, *NO_DELAY) as served:
            before = version(served)
            shutil.rmtree(bundle)
            shutil.copytree(OTHER, bundle)
            served.process.send_signal(signal.SIGHUP)
            until(lambda: served.log.read_text().count("serves in place of") == int(workers))
            assert version(served) != before
            (bundle / "manifest.json").write_text("{}")
            served.process.send_signal(signal.SIGHUP)
            until(lambda: served.log.read_text().count("keeps what it has") == int(workers))
            assert served.post("/predict", content=image).status_code == 200

    def test_requests_may_ask_for_it_where_that_is_allowed(self, tmp_path: Path, served: Served) -> None:
        path = "/v2/repository/models/photos/load"
        answer = served.post(path)
        assert (answer.status_code, "--allow-load" in answer.json()["error"]) == (403, True)
        bundle = tmp_path / "photos"
        shutil.copytree(BUNDLE, bundle)
        with serving(tmp_path, bundle, "--device", "cpu", "--allow-load", "--workers", "2", *NO_DELAY) as ours:
            before = version(ours)
            shutil.rmtree(bundle)
            shutil.copytree(OTHER, bundle)
            assert ours.post(path).json() == {}
            assert {version(ours) for _ in range(20)} == {version(ours)} != {before}
            assert ours.post("/v2/repository/models/photo/load").status_code == 404
            assert ours.post("/v2/repository/models/photos/unload").status_code == 403
            (bundle / "manifest.json").write_text("{}")
            answer = ours.post(path)
            assert (answer.status_code, "manifest.json" in answer.json()["error"]) == (500, True)


def version(served: Served) -> str:
    return str(served.get("/v2/models/photos/config").json()["info"]["version"])


class TestWorkers:
    def test_they_count_together_and_one_that_dies_is_replaced(self, tmp_path: Path, image: bytes) -> None:
        with serving(tmp_path, f"p={BUNDLE}", "--device", "cpu", "--workers", "2", *NO_DELAY) as served:
            for _ in range(20):
                assert served.post("/predict", content=image).status_code == 200
            for _ in range(4):
                (stats,) = served.get("/v2/models/p/stats").json()["model_stats"]
                assert stats["inference_count"] == 20
            found = served.get("/metrics").text
            assert 'tnn_images_total{model="p",' in found
            assert found.count("tnn_ready{") == 1
            first = int(served.log.read_text().partition("tnn-runtime[")[2].partition("]")[0])
            os.kill(first, signal.SIGKILL)
            until(lambda: "another one takes its place" in served.log.read_text())
            until(lambda: served.log.read_text().count("runs on cpu") == 3)
            assert served.end() == 0

    def test_one_that_cannot_start_again_leaves_the_others(self, tmp_path: Path, image: bytes) -> None:
        bundle = tmp_path / "photos"
        shutil.copytree(BUNDLE, bundle)
        with serving(tmp_path, bundle, "--device", "cpu", "--workers", "2", *NO_DELAY) as served:
            (bundle / "manifest.json").rename(tmp_path / "away.json")
            first = int(served.log.read_text().partition("tnn-runtime[")[2].partition("]")[0])
            os.kill(first, signal.SIGKILL)
            served.process.send_signal(signal.SIGHUP)
            until(lambda: "another one takes its place in 1 s" in served.log.read_text())
            assert served.post("/predict", content=image).status_code == 200
            (tmp_path / "away.json").rename(bundle / "manifest.json")
            until(lambda: served.log.read_text().count("runs on cpu") == 3)
            assert served.end() == 0


class TestTokenAndTls:
    def test_a_token_is_asked_for(self, tmp_path: Path, image: bytes) -> None:
        (tmp_path / "token").write_text("a-b.c\n")
        options = ("--token-file", tmp_path / "token", "--grpc", "127.0.0.1:0")
        with serving(tmp_path, f"p={BUNDLE}", "--device", "cpu", *options, *NO_DELAY) as served:
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/p/ready", "/"):
                assert served.get(path).status_code == 200
            for given in (None, b"a-b.c", b"Bearer a-b", "Bearer é".encode()):
                headers = {} if given is None else {"Authorization": given}
                answer = served.post("/predict", content=image, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert served.get("/metrics", headers=headers).status_code == 401
            right = {"authorization": "Bearer a-b.c"}
            assert served.post("/predict", content=image, headers=right).status_code == 200
            with grpc.insecure_channel(served.grpc) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ServerMetadata(service_pb2.ServerMetadataRequest())
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=tuple(right.items())).name

    def test_tls(self, tmp_path: Path, image: bytes) -> None:
        certificate, key = certify(tmp_path)
        options = ("--tls-certificate", certificate, "--tls-key", key, "--grpc", "127.0.0.1:0")
        with serving(tmp_path, f"p={BUNDLE}", "--device", "cpu", *options, *NO_DELAY) as served:
            trusted = ssl.create_default_context(cafile=str(certificate))
            port = served.http.rsplit(":", 1)[1]
            answer = httpx.post(f"https://localhost:{port}/predict", content=image, verify=trusted, timeout=FOREVER)
            assert answer.status_code == 200
            credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
            with grpc.secure_channel(f"localhost:{served.grpc.rsplit(':', 1)[1]}", credentials) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready


def certify(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for localhost that signs itself, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(1)
    serial = x509.random_serial_number()
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), serial, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, key


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{bundle}", "--http", "8000"], "got --http '8000'; expected HOST:PORT"),
            (["{bundle}", "--http", "127.0.0.1:99999"], "expected HOST:PORT"),
            (["{bundle}", "--http", "nowhere.invalid:0"], "cannot listen on nowhere.invalid:0"),
            (["{bundle}", "--grpc", ":8001"], "got --grpc ':8001'; expected HOST:PORT"),
            (["{bundle}", "--http", "{taken}"], "cannot listen on {taken} (Address already in use)"),
            (
                ["{bundle}", "--http", "127.0.0.1:0", "--grpc", "{taken}"],
                "cannot listen on {taken}",
            ),
            (["{bundle}", "--http", "{taken}", "--workers", "2"], "cannot listen on {taken} (Address already in use)"),
            (["{bundle}", "{bundle}"], "got two models bundle-v5 of version 1"),
            (["a=nothing", "--http", "127.0.0.1:0"], "nothing"),
            (["nothing", "--http", "127.0.0.1:0", "--workers", "2"], "a process of the server failed"),
            (["{odd}"], "is not a valid name for a model"),
            (["{bundle}", "--workers", "0"], "argument --workers: got '0'; expected an integer of at least 1"),
            (["{bundle}", "--drain-s", "-1"], "--drain-s is -1.0; expected a number of seconds"),
            (["{bundle}", "--drain-s", "nan"], "--drain-s is nan"),
            (["{bundle}", "--tls-key", "a.pem"], "got one of --tls-certificate and --tls-key"),
            (
                ["{bundle}", "--tls-key", "{odd}/manifest.json", "--tls-certificate", "{odd}/manifest.json"],
                "cannot be used",
            ),
            (["{bundle}", "--tls-key", "gone.pem", "--tls-certificate", "gone.pem"], "gone.pem"),
            (["{bundle}", "--token-file", "{empty}"], "has no valid token"),
            (["{bundle}", "--token-file", "gone"], "gone"),
            (["{bundle}", "--device", "gpu", "--http", "127.0.0.1:0"], "gpu"),
            (["{bundle}", "--threads", "1000000", "--http", "127.0.0.1:0"], "threads is 1000000; expected an integer"),
            (
                ["{bundle}", "--workers", "1000000"],
                "workers is 1000000; expected an integer",
            ),
            (["{bundle}", "--timeout-s", "0"], "--timeout-s is 0; expected a number of seconds above 0"),
            (["{bundle}", "--grpc", "127.0.0.1:8000"], "got --http and --grpc 127.0.0.1:8000; give each a port"),
            (["photos="], "expected the folder of a bundle after ="),
            (["stats={bundle}"], "stats is not a valid name for a model"),
        ],
    )
    def test_what_cannot_be_served_is_one_line(
        self, arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        odd, empty = tmp_path / "my photos", tmp_path / "empty"
        shutil.copytree(BUNDLE, odd)
        empty.touch()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            words = {"bundle": BUNDLE, "odd": odd, "empty": empty, "taken": f"127.0.0.1:{taken.getsockname()[1]}"}
            assert __main__.main(["serve", *(one.format(**words) for one in arguments)]) == 1
        lines = capfd.readouterr().err.strip().splitlines()
        assert message.format(**words) in lines[-1]

    def test_a_hangup_does_not_end_a_server_that_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        before = signal.getsignal(signal.SIGHUP)
        monkeypatch.setattr("tnn_runtime.server.plan.run", lambda *args: found.append(signal.getsignal(signal.SIGHUP)))
        assert __main__.main(["serve", str(BUNDLE)]) == 0
        assert found == [signal.SIG_IGN]
        assert signal.getsignal(signal.SIGHUP) is before

    def test_a_link_has_the_name_that_it_is_given(self, tmp_path: Path) -> None:
        (tmp_path / "photos").symlink_to(BUNDLE)
        with serving(tmp_path, tmp_path / "photos", "--device", "cpu", *NO_DELAY) as served:
            assert served.get("/v2/models/photos").status_code == 200

    def test_versions(self, tmp_path: Path, image: bytes) -> None:
        with serving(tmp_path, f"p:2={OTHER}", f"p:10={BUNDLE}", "--device", "cpu", *NO_DELAY) as served:
            assert served.get("/v2/models/p").json()["versions"] == ["2", "10"]
            told = [served.post(f"/predict{query}", content=image).json() for query in ("", "?version=2")]
            assert [one["model_version"] for one in told] == ["10", "2"]
            assert served.get("/v2/models/p/versions/3").status_code == 404
            assert 'model="p:10"' in served.get("/metrics").text


def test_what_is_not_installed_is_told() -> None:
    program = (
        "import sys; sys.modules['starlette'] = None; sys.modules['starlette.applications'] = None\n"
        f"from tnn_runtime.__main__ import main; sys.exit(main(['serve', {str(BUNDLE)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=FOREVER)
    assert ended.returncode == 1
    assert "serving needs more packages" in ended.stderr
    assert "pip install" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_predict_answers_what_the_classifier_does(served: Served, image: bytes) -> None:
    with Classifier.load(BUNDLE, "cpu") as classifier:
        (expected,) = classifier.predict([image])
    found = served.post("/predict", content=image).json()
    assert [one["label"] for one in found["predictions"]] == [one.label for one in expected]
    scores = [one["score"] for one in found["predictions"]]
    np.testing.assert_allclose(scores, [one.score for one in expected], rtol=1e-5)
