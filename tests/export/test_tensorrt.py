"""TensorRT's parser and builder take every form; TensorRT for RTX builds engines without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from forms import FORMS, Together, name, random_head, to_onnx

from tnn_export import lower_head

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")

CHUNK = 48


def build(model: bytes) -> tuple[bytes | None, list[str]]:
    """Return the engine of an ONNX model for batches of 1 to 64 embeddings, and what TensorRT complained about."""
    problems: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                problems.append(message)

    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        return None, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 5), (8, 5), (64, 5))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return None if engine is None else bytes(engine), problems


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(FORMS), CHUNK))
def test_every_form_is_parsed_and_built(start: int, tmp_path: Path) -> None:
    configs = FORMS[start : start + CHUNK]
    heads = [lower_head(random_head(config)[0]) for config in configs]
    engine, problems = build(to_onnx(Together(heads), tmp_path / "heads.onnx").read_bytes())
    assert engine is not None, (problems, [name(config) for config in configs])
    assert not problems
    assert len(engine) > 1000


def test_what_tensorrt_does_not_know_is_refused(tmp_path: Path) -> None:
    model = onnx.load(to_onnx(lower_head(random_head(FORMS[0])[0]), tmp_path / "head.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    engine, problems = build(model.SerializeToString())
    assert engine is None
    assert "NoSuchOperator" in " ".join(problems)
