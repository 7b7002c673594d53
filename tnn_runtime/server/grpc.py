"""The models over gRPC: ``inference.GRPCInferenceService`` of the Open Inference Protocol; needs the extra serve.

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(GrpcApi(models)), server)

`GrpcApi` has a method for each call, from the message of the request to that of the answer; `Servicer` puts them behind
grpc.aio. Messages and stubs are those of ``tritonclient``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from tnn_runtime.errors import TnnError, UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.server.budget import Budget
from tnn_runtime.server.models import Model, Models, server_metadata
from tnn_runtime.server.options import MAX_BODY_BYTES
from tnn_runtime.server.requests import Given, Images, InferRequest, read_request
from tnn_runtime.server.statuses import BadRequest, Status, UnknownModel, client_error, message_of, status_of
from tnn_runtime.server.tensors import bytes_as_given, bytes_from_raw, pixels_from_json, pixels_from_raw
from tnn_runtime.server.threads import LARGE, off_loop
from tnn_runtime.server.tokens import check_token, hidden

try:
    import grpc
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except (ImportError, RuntimeError) as error:  # the generated code refuses older versions of grpcio so
    raise UsageError(f"serving needs more packages ({error}); run: {install_command('serve')}") from error

__all__ = ["GrpcApi", "Reading", "Servicer", "refusal"]

_OPEN = frozenset({"ServerLive", "ServerReady", "ModelReady"})
_RETRY_AFTER_MS = "1000"


class GrpcApi:
    """The calls of the service, each from the message of a request to that of the answer.

    Args:
        models: What is served.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ServerLive(self, request: Any) -> Any:  # noqa: N802
        """Tell that the process runs."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:  # noqa: N802
        """Tell whether requests should be sent here."""
        return service_pb2.ServerReadyResponse(ready=self._models.ready)

    async def ModelReady(self, request: Any) -> Any:  # noqa: N802
        """Tell whether requests for a model should be sent here."""
        ready = self._model(request).ready and not self._models.draining
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any) -> Any:  # noqa: N802
        """Tell what the server is."""
        return json_format.ParseDict(server_metadata(), service_pb2.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any) -> Any:  # noqa: N802
        """Tell the inputs and outputs of a model."""
        told = self._model(request).metadata(self._models.versions(request.name))
        return json_format.ParseDict(told, service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request: Any) -> Any:  # noqa: N802
        """Tell how a model runs; ``parameters["info"]`` is `Classifier.info` as JSON."""
        told = self._model(request).config()
        told["parameters"] = {"info": {"string_value": json.dumps(told.pop("info"))}}
        return json_format.ParseDict({"config": told}, service_pb2.ModelConfigResponse())

    async def ModelStatistics(self, request: Any) -> Any:  # noqa: N802
        """Tell what a model has counted, or each of them."""
        told = await self._models.stats(request.name or None, request.version)
        return json_format.ParseDict(told, service_pb2.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any) -> Any:  # noqa: N802
        """List the models with their states."""
        told = {"models": self._models.index(request.ready)}
        return json_format.ParseDict(told, service_pb2.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any) -> Any:  # noqa: N802
        """Load the bundles of a model again."""
        await self._models.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:  # noqa: N802
        """Refuse: models are served until the server ends."""
        await self._models.unload(request.model_name)

    async def ModelInfer(self, request: Any, timeout_s: float | None = None) -> Any:  # noqa: N802
        """Classify the images of a request.

        Args:
            request: The message.
            timeout_s: Seconds that are left until the deadline of the call; ``None`` for as long as it takes.
        """
        model = self._models.get(request.model_name, request.model_version)
        asked = await off_loop(request.ByteSize() > LARGE, _parsed, request, timeout_s)
        answer = service_pb2.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request.id)
        for tensor, _ in await model.infer(asked):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
            answer.raw_output_contents.append(tensor.to_raw())
        return answer

    def _model(self, request: Any) -> Model:
        return self._models.get(request.name, request.version)


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """`GrpcApi` behind grpc.aio, with a status for each error.

    Args:
        api: The calls.
        token: What calls must carry in their metadata as ``authorization: Bearer TOKEN``, but for those about health;
            ``None`` for nothing.
        max_bytes: How many bytes a message may have; all that are held at the same time may have 16 times as many.
    """

    def __init__(self, api: GrpcApi, token: str | None = None, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._api = api
        self._token = token
        self._budget = Budget(max_bytes)
        for name in vars(service_pb2_grpc.GRPCInferenceServiceServicer):
            if not name.startswith("_") and name not in vars(Servicer):
                call = getattr(api, name, None)
                setattr(self, name, _refuse if call is None else self._answering(name, call))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answer one request after another; an error is the answer to its request, and the stream goes on."""
        await self._check_token(context)
        async for request in requests:
            try:
                with self._budget.share() as share:
                    share.grow(_read(request).ByteSize())
                    answer = await self._api.ModelInfer(request)
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)
            except Exception as error:
                _, message = refusal(error)
                answer = service_pb2.ModelInferResponse(id=getattr(request, "id", ""))
                yield service_pb2.ModelStreamInferResponse(error_message=message, infer_response=answer)

    def _answering(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            if name not in _OPEN:
                await self._check_token(context)
            options = {"timeout_s": context.time_remaining()} if name == "ModelInfer" else {}
            try:
                with self._budget.share() as share:
                    share.grow(_read(request).ByteSize())
                    return await call(request, **options)
            except UnknownModel as error:
                await _abort(context, hidden(error, self._token if name in _OPEN else None))
            except Exception as error:
                await _abort(context, error)

        return answer

    async def _check_token(self, context: Any) -> None:
        try:
            check_token(self._token, dict(context.invocation_metadata() or ()).get("authorization"))
        except TnnError as error:
            await _abort(context, error)


class Reading(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Hands messages that cannot be read on to `Servicer`, which refuses them; grpc.aio would take them for its own."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """Return what answers a call."""
        found = await continuation(call)
        if found is None:
            return None
        streams = found.request_streaming
        make = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        read = partial(_message_or_error, found.request_deserializer)
        return make(found.stream_stream if streams else found.unary_unary, read, found.response_serializer)


def _message_or_error(read: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return read(content)
    except DecodeError:
        return BadRequest("the message cannot be read; send one of the type that the service has for this call")


def _read(message: Any) -> Any:
    """Return a message, or raise what is there in its place."""
    if isinstance(message, BadRequest):
        raise message
    return message


def refusal(error: Exception) -> tuple[Status, str]:
    """Return the status and the message that a call with this error gets; what nobody foresaw is logged."""
    told = client_error(error, "a call")
    return status_of(told), message_of(told)


async def _refuse(request: Any, context: Any) -> None:
    """Answer a call that Triton has and this server does not."""
    message = "this server has no shared memory, and no settings of traces and logs"
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)


async def _abort(context: Any, error: Exception) -> None:
    status, message = refusal(error)
    trailing = (("grpc-retry-pushback-ms", _RETRY_AFTER_MS),) if status.grpc == "UNAVAILABLE" else ()
    await context.abort(grpc.StatusCode[status.grpc], message, trailing)


def _parsed(request: Any, timeout_s: float | None) -> InferRequest:
    """Return what a message asks for."""
    told = {
        "inputs": [
            {
                "name": one.name,
                "datatype": one.datatype,
                "shape": list(one.shape),
                "parameters": _values(one.parameters),
            }
            for one in request.inputs
        ],
        "outputs": [{"name": one.name, "parameters": _values(one.parameters)} for one in request.outputs],
        "parameters": _values(request.parameters),
    }
    found = read_request(told, lambda given: _images(request, given))
    limits = [limit for limit in (found.timeout_s, timeout_s) if limit is not None]
    return dataclasses.replace(found, timeout_s=max(min(limits), 0.0) if limits else None)


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a message with their plain values."""
    return {name: getattr(one, one.WhichOneof("parameter_choice") or "", None) for name, one in parameters.items()}


def _images(request: Any, given: Given) -> Images:
    """Return the images of an input: from the raw contents, or from its own."""
    contents, raw = request.inputs[0].contents, request.raw_input_contents
    field = "uint_contents" if given.name == "images" else "bytes_contents"
    others = [one.name for one, _ in contents.ListFields() if one.name != field]
    if others:
        raise BadRequest(f"input {given.name!r} has its values in {', '.join(others)}; expected {field}")
    values = getattr(contents, field)
    if len(raw) > 1 or bool(raw) == bool(values):
        raise BadRequest(
            f"input {given.name!r} has {len(raw)} raw_input_contents and {len(values)} values in {field}; give one of "
            "the two"
        )
    if given.name == "images":
        if raw:
            return pixels_from_raw(given.name, given.shape, memoryview(raw[0]))
        return pixels_from_json(given.name, given.shape, list(values))
    if raw:
        return bytes_from_raw(given.name, given.shape, memoryview(raw[0]))
    return bytes_as_given(given.name, given.shape, values)
