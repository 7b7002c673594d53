from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from tnn_runtime import ProviderUnavailable
from tnn_runtime.backends import PROBE
from tnn_runtime.backends import onnxruntime as backend
from tnn_runtime.commands import doctor
from tnn_runtime.commands.doctor import Finding, examine
from tnn_runtime.installation import install_command


def test_it_reports_versions_devices_and_what_is_missing() -> None:
    findings = {finding.name: finding for finding in examine()}
    for name in ("tnn-deploy", "python", "cores", "numpy", "pillow", "torch", "onnxruntime", "device cpu"):
        assert findings[name].works, findings[name]
    assert findings["device cpu"].detail == "runs a model with CPUExecutionProvider"
    assert findings["device cuda:0"].works == (backend.cuda_problems() == [])
    for name in ("device cuda:0", "device tensorrt:0"):
        assert findings[name].works or "libcuda.so.1" in findings[name].detail


def test_a_package_that_is_missing_comes_with_its_remedy() -> None:
    assert doctor._package("no-such-package", "sign") == Finding(
        "no-such-package", False, f"not installed ({install_command('sign')})"
    )
    assert doctor._package("no-such-package").detail == "not installed (pip install no-such-package)"


def test_two_builds_of_onnxruntime_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "1.2")
    finding = doctor._onnxruntime()
    assert not finding.works
    assert (
        finding.detail
        == "onnxruntime 1.2, onnxruntime-gpu 1.2 overwrite each other: pip uninstall both, then install one"
    )


def test_a_device_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ProviderUnavailable("no such thing")

    monkeypatch.setattr(backend, "open_session", fail)
    assert doctor._device("cpu") == Finding("device cpu", False, "no such thing")


def test_a_device_that_computes_nonsense_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(run=lambda names, feed: [feed["x"] * 3])
    monkeypatch.setattr(backend, "open_session", lambda *arguments, **options: session)
    assert doctor._device("cpu") == Finding(
        "device cpu", False, "device 'cpu' computed 1 + 1 = [3.0, 3.0]; do not use it"
    )


def test_the_probe_is_the_model_it_should_be() -> None:
    """The committed bytes are those of y = x + x, as made here."""
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"}
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [value["x"]], [value["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    assert PROBE.read_bytes() == model.SerializeToString(deterministic=True)
