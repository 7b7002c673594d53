"""The command ``tnn-runtime serve``."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import ssl
import sys
from pathlib import Path

from tnn_runtime.backends.devices import DEVICES
from tnn_runtime.console import Parser, logs, positive_int, say
from tnn_runtime.errors import UsageError
from tnn_runtime.options import MOST_THREADS, at_least_one, seconds
from tnn_runtime.queue.cores import usable_cores
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.names import named
from tnn_runtime.server.options import MAX_BODY_BYTES, MAX_IMAGES, MEBIBYTE, HttpOptions, ServeOptions
from tnn_runtime.text import printable

__all__ = ["add_serve"]

_HTTP = "127.0.0.1:8000"
_TOKEN = "TNN_TOKEN"  # noqa: S105

_EPILOG = """examples:
  tnn-runtime serve runs/photos-bundle
  curl --data-binary @holiday.jpg 'http://127.0.0.1:8000/predict?top_k=3'
  tnn-runtime serve photos:1=runs/photos photos:2=runs/photos-new digits=runs/digits --grpc 127.0.0.1:8001

It speaks the Open Inference Protocol, as KServe and NVIDIA Triton do, over HTTP (/v2) and gRPC, has metrics for
Prometheus (/metrics), and a page to try images on (/). SIGTERM: it says that it is not ready, answers what it has, and
ends. SIGHUP: it loads all bundles again, which may have been replaced. docs/server.md has more."""


def add_serve(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Add the command, and return its parser."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP and gRPC",
        description="Serve bundles over HTTP and gRPC.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="[NAME[:VERSION]=]BUNDLE",
        help="bundle folder that tnn-export wrote; NAME defaults to the name of the folder, VERSION to 1",
    )
    parser.add_argument("--http", default=_HTTP, metavar="HOST:PORT", help="address for HTTP; port 0 picks a free one")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="address for gRPC; off by default")
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--threads", type=positive_int, help="CPU threads of a model, all usable cores if not given")
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes, which share addresses and cores",
    )
    parser.add_argument("--max-batch-size", type=positive_int, default=64, metavar="N", help="largest batch")
    parser.add_argument(
        "--max-queue-delay-ms", type=float, default=2.0, metavar="MS", help="how long a batch waits for more images"
    )
    parser.add_argument("--max-queue-size", type=positive_int, default=1024, metavar="N", help="most images waiting")
    parser.add_argument(
        "--timeout-s", type=float, default=30.0, metavar="S", help="how long an image may wait for its batch to begin"
    )
    parser.add_argument(
        "--max-images", type=positive_int, default=MAX_IMAGES, metavar="N", help="most images per request"
    )
    parser.add_argument(
        "--max-body-mb",
        type=positive_int,
        default=MAX_BODY_BYTES // MEBIBYTE,
        metavar="MB",
        help="largest request, in MiB",
    )
    parser.add_argument(
        "--ready-delay-s",
        type=float,
        default=ServeOptions.ready_delay_s,
        metavar="S",
        help="time to go on answering when no longer ready",
    )
    parser.add_argument(
        "--drain-s", type=float, default=ServeOptions.drain_s, metavar="S", help="time to finish accepted requests"
    )
    parser.add_argument("--allow-load", action="store_true", help="allow clients to reload bundles")
    parser.add_argument("--tls-certificate", type=Path, metavar="PEM", help="certificate with its chain, for TLS")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="private key of the certificate")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file with the token that requests must carry; or set {_TOKEN}"
    )
    parser.set_defaults(run=_serve, log=logs)
    return parser


def _serve(options: argparse.Namespace) -> None:
    if not hasattr(signal, "SIGHUP") or not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("tnn-runtime serve needs Linux or macOS; embed a Classifier elsewhere, see docs/serving.md")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to load again before it serves
    try:
        _start(options)
    finally:
        signal.signal(signal.SIGHUP, before)


def _start(options: argparse.Namespace) -> None:
    from tnn_runtime.server.plan import Plan, run
    from tnn_runtime.server.workers import supervise

    at_least_one(MOST_THREADS, workers=options.workers)
    if options.timeout_s <= 0:
        raise UsageError(f"--timeout-s is {options.timeout_s:g}; expected a number of seconds above 0")
    if options.grpc == options.http and not options.http.endswith(":0"):
        raise UsageError(f"got --http and --grpc {options.grpc}; give each a port of its own")
    threads = options.threads
    if threads is None and options.workers > 1:
        threads = max(1, usable_cores() // options.workers)
    plan = Plan(
        _places(options.bundles),
        Address.parse(options.http, "--http"),
        None if options.grpc is None else Address.parse(options.grpc, "--grpc"),
        {
            "device": options.device,
            "threads": threads,
            "max_batch_size": options.max_batch_size,
            "max_queue_delay_ms": options.max_queue_delay_ms,
            "max_queue_size": options.max_queue_size,
            "timeout_s": options.timeout_s,
            "public_key": options.public_key,
        },
        ServeOptions(
            HttpOptions(options.max_body_mb * MEBIBYTE, token=_token(options.token_file)),
            seconds(options.ready_delay_s, "--ready-delay-s"),
            seconds(options.drain_s, "--drain-s"),
            _tls(options.tls_certificate, options.tls_key),
        ),
        options.allow_load,
        options.max_images,
    )

    def is_up(names: list[str], http: Address, grpc: Address | None) -> None:
        secure = "" if plan.options.tls is None else "s"
        say(*names, f"http{secure}://{http} has a page, /predict, /v2 and /metrics")
        if grpc is not None:
            say(f"grpc{secure}://{grpc}")
        sys.stdout.flush()

    if options.workers == 1:
        run(plan, is_up)
    else:
        supervise(plan, options.workers, is_up)


def _places(given: list[str]) -> dict[tuple[str, int], Path]:
    """Return the folder of each name and version."""
    places: dict[tuple[str, int], Path] = {}
    for text in given:
        name, equals, bundle = text.partition("=")
        if not equals or Path(text).exists():
            name, bundle = os.path.basename(os.path.abspath(text)), text
        key = named(name)
        if not bundle:
            raise UsageError(f"got {printable(text)}; expected the folder of a bundle after =")
        if key is None:
            raise UsageError(
                f"{printable(name)} is not a valid name for a model; expected letters, digits and . _ -, then : and a "
                f"number for a version: give one, such as photos={printable(bundle)} or photos:2={printable(bundle)}"
            )
        if key in places:
            raise UsageError(
                f"got two models {key[0]} of version {key[1]}; give them names or versions, such as "
                f"{key[0]}:2={printable(bundle)}"
            )
        places[key] = Path(bundle)
    return places


def _token(file: Path | None) -> str | None:
    """Return the token of the server, if it has one."""
    text = os.environ.get(_TOKEN) if file is None else file.read_text(encoding="utf-8", errors="replace")
    if text is None:
        return None
    token = text.strip()
    if not re.fullmatch("[!-~]+", token):
        where = _TOKEN if file is None else printable(str(file))
        raise UsageError(f"{where} has no valid token; expected one word of ASCII characters, without spaces")
    return token


def _tls(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Return the files for TLS, after a look at them."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("got one of --tls-certificate and --tls-key; TLS needs both")
    for path in (certificate, key):
        path.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise UsageError(
            f"{printable(str(certificate))} and {printable(str(key))} cannot be used ({error.reason or error}); give "
            "a certificate and its private key without a password, each a PEM file"
        ) from None
    return certificate, key
