"""What a server is to serve, where and how: a value that can be sent to other processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from tnn_runtime.deployment import Deployment
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.options import MAX_IMAGES, ServeOptions
from tnn_runtime.server.running import serve
from tnn_runtime.server.siblings import Siblings

__all__ = ["IsUp", "Plan", "run"]


@dataclass(frozen=True)
class Plan:
    """What a server is to serve, where and how.

    Args:
        bundles: The bundle folder of each name and version.
        http: Where to listen for HTTP.
        grpc: Where to listen for gRPC; ``None`` for nowhere.
        loading: The arguments of `Classifier.load`.
        options: How to serve.
        may_load: Whether requests may have bundles loaded again.
        max_images: Images that a request may have.
    """

    bundles: Mapping[tuple[str, int], Path]
    http: Address
    grpc: Address | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    options: ServeOptions = field(default_factory=ServeOptions)
    may_load: bool = False
    max_images: int = MAX_IMAGES


IsUp: TypeAlias = Callable[[list[str], Address, Address | None], None]
"""What is called once a server serves: with what is served on which device, and where it listens for HTTP and gRPC."""


def run(plan: Plan, is_up: IsUp, siblings: Siblings | None = None) -> None:
    """Load what is to be served, and serve it in this process until it is told to end.

    Args:
        plan: What to serve.
        is_up: Called once it serves.
        siblings: The other processes that serve the same, if there are any.

    Raises:
        KeyboardInterrupt: If it was told to end at once.
        UsageError: If an address cannot be had.
        TnnError: As `Classifier.load`.
    """
    shared = siblings is not None
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(plan.http.bind(shared=shared))
        if plan.grpc is not None and not shared:
            plan.grpc.bind().close()
        models = Models(
            [
                Model(name, version, stack.enter_context(Deployment(bundle, **plan.loading)), plan.max_images)
                for (name, version), bundle in plan.bundles.items()
            ],
            may_load=plan.may_load,
        )

        stack.callback(models.close)
        plan.http.listen(http)

        def listening(grpc_port: int | None) -> None:
            over_grpc = None if plan.grpc is None or grpc_port is None else Address(plan.grpc.host, grpc_port)
            names = [f"{model} on {model.deployment.info['device']}" for model in models]
            is_up(names, plan.http.at(http), over_grpc)

        async def main() -> bool:
            async with siblings.talking(models) if siblings else contextlib.nullcontext():
                return await serve(models, http, plan.grpc, plan.options, listening, shared=shared)

        if not asyncio.run(main()):
            raise KeyboardInterrupt
