from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tnn_runtime import ArtifactError, Classifier, ClassifierClosed, Manifest, ProviderUnavailable, RunError, UsageError
from tnn_runtime.backends import BackendOptions, Device, open_backend, providers
from tnn_runtime.backends import onnxruntime as module
from tnn_runtime.backends.providers import CPU, CUDA, TENSORRT, chosen_providers
from tnn_runtime.backends.runs import Unbound
from tnn_runtime.bundle.opened import open_bundle

needs_no_gpu = pytest.mark.skipif(module.cuda_problems() == [], reason="this machine has a working GPU")
ON_CPU, ON_CUDA = Device("cpu"), Device("cuda", 1)
SENT = {"device_id": "1", "arena_extend_strategy": "kSameAsRequested"}


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_without_cuda_is_an_error_with_the_reason_and_the_remedy(small_bundle: Path, device: str) -> None:
    with pytest.raises(
        ProviderUnavailable, match=r"device 'cuda:\d' does not work here: .*\(.*install.*choose device 'cpu'"
    ):
        Classifier.load(small_bundle, device)


@needs_no_gpu
def test_auto_says_why_it_took_the_cpu(small_bundle: Path) -> None:
    with Classifier.load(small_bundle, "auto") as classifier:
        info = classifier.info
    assert info["device"] == "cpu"
    assert info["reason"].startswith("auto: no CUDA (device 'cuda:0' does not work here: ")


def without_libraries(library: str) -> None:
    raise OSError(f"{Path(library).name}: cannot open shared object file: No such file or directory")


def test_every_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", without_libraries)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    driver, toolkit = module.cuda_problems()
    assert driver == (
        "libcuda.so.1: cannot open shared object file (install the NVIDIA driver on a machine with an NVIDIA GPU)"
    )
    for library in ("libcudart.so.", "libcublasLt.so.", "libcublas.so.", "libcurand.so.10", "libcudnn.so.9"):
        assert f"{library}" in toolkit
    assert toolkit.endswith("(pip install 'onnxruntime-gpu[cuda,cudnn]')")


def test_a_provider_that_lacks_something_else_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(library: str) -> None:
        if "providers" in library:
            raise OSError("libcufft.so.12: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    (problem,) = module.cuda_problems()
    assert problem == "libcufft.so.12: cannot open shared object file (pip install 'onnxruntime-gpu[cuda,cudnn]')"


def test_the_tensorrt_provider_asks_for_tensorrt_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "cuda_problems", list)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA])
    monkeypatch.setattr(ctypes, "CDLL", without_libraries)
    (problem,) = providers.provider_problems(TENSORRT)
    assert problem.startswith("libnvinfer.so.10: cannot open shared object file, libnvonnxparser.so.10: cannot open")
    assert "pip install 'tensorrt>=10.13,<11'; ONNX Runtime takes no other TensorRT" in problem


@needs_no_gpu
@pytest.mark.parametrize(
    ("device", "names"), [("cuda", None), ("cuda:7", None), ("cuda", [TENSORRT, CUDA]), ("cuda", [CUDA, CPU])]
)
def test_gpus_that_are_not_there_are_errors_with_all_that_is_missing(
    small_bundle: Path, device: str, names: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(
        ProviderUnavailable, match=r"does not work here: .*lib\w+\.so.*; or choose device 'cpu'"
    ) as caught:
        open_backend(open_bundle(small_bundle), device, BackendOptions(providers=names))
    assert ("libnvinfer.so.10" in str(caught.value)) == (names == [TENSORRT, CUDA])


def test_a_cpu_only_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    (problem,) = module.cuda_problems()
    assert "is a CPU-only build (pip uninstall onnxruntime, then pip install " in problem
    assert "onnxruntime-gpu" in problem
    assert providers.provider_problems("XnnpackExecutionProvider") == [
        f"onnxruntime {onnxruntime.__version__} has no XnnpackExecutionProvider (it has {CPU})"
    ]


# What is asked of ONNX Runtime


def chosen(small_bundle: Path, device: Device, **options: Any) -> list[tuple[str, dict[str, str]]]:
    return chosen_providers(device, Manifest.read(small_bundle)[0], BackendOptions(**options))


def test_nothing_that_changes_results_is_on_unless_asked_for(small_bundle: Path) -> None:
    assert chosen(small_bundle, ON_CPU) == [(CPU, {})]
    assert chosen(small_bundle, ON_CUDA) == [(CUDA, SENT | {"use_tf32": "0"})]
    assert chosen(small_bundle, ON_CUDA, tf32=True, cuda_graphs=True) == [
        (CUDA, SENT | {"use_tf32": "1", "enable_cuda_graph": "1"})
    ]


@pytest.mark.parametrize(("precision", "sent"), [("fp32", True), ("int8", True), ("fp16", False), ("bf16", False)])
@pytest.mark.parametrize("tf32", [False, True])
def test_half_precision_keeps_the_tensor_cores(small_bundle: Path, precision: str, sent: bool, tf32: bool) -> None:
    manifest = dataclasses.replace(Manifest.read(small_bundle)[0], precision=precision)
    ((_, asked),) = chosen_providers(ON_CUDA, manifest, BackendOptions(tf32=tf32))
    assert asked == SENT | ({"use_tf32": str(int(tf32))} if sent else {})


def test_options_of_providers_go_to_the_first(small_bundle: Path) -> None:
    asked = {"gpu_mem_limit": "1000000000"}
    assert chosen(small_bundle, ON_CUDA, providers=[CUDA, CPU], provider_options=asked) == [
        (CUDA, SENT | {"use_tf32": "0", "gpu_mem_limit": "1000000000"}),
        (CPU, {}),
    ]


def test_the_tensorrt_provider_gets_its_batch_sizes_and_a_folder(small_bundle: Path, tmp_path: Path) -> None:
    (first, taken), (second, _) = chosen(
        small_bundle,
        ON_CUDA,
        providers=(TENSORRT, CUDA),
        provider_options={"trt_fp16_enable": "1"},
        max_batch_size=16,
        tf32=True,
        cache_dir=tmp_path / "engines",
    )
    assert (first, second) == (TENSORRT, CUDA)
    assert taken == {
        "device_id": "1",
        "trt_profile_min_shapes": "images:1x8x8x3",
        "trt_profile_opt_shapes": "images:4x8x8x3",
        "trt_profile_max_shapes": "images:16x8x8x3",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "engines"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "engines"),
        "trt_fp16_enable": "1",
    }
    assert (tmp_path / "engines").is_dir()


def test_tf32_of_the_tensorrt_provider_is_accepted_or_off(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    with pytest.raises(
        UsageError, match=r"rounds float32 products to TF32 .* accept that with tf32=True, set NVIDIA_TF"
    ):
        chosen(small_bundle, ON_CUDA, providers=[TENSORRT, CUDA])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert [name for name, _ in chosen(small_bundle, ON_CUDA, providers=[TENSORRT, CUDA])] == [TENSORRT, CUDA]


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        (ON_CPU, {"providers": [CUDA]}, "device 'cpu' and the provider CUDAExecutionProvider .*; choose device 'cuda'"),
        (ON_CUDA, {"providers": [CPU]}, r"device 'cuda:1' and the providers \['CPUEx.*; choose CUDAExecution"),
        (ON_CPU, {"cuda_graphs": True}, "cuda_graphs=True needs CUDA's provider alone"),
        (ON_CUDA, {"providers": [TENSORRT], "tf32": True, "cuda_graphs": True}, "cuda_graphs=True needs CUDA's"),
        (ON_CUDA, {"provider_options": {"use_tf32": "1"}}, "'use_tf32' is set by the classifier; ask for tf32=True"),
        (ON_CUDA, {"provider_options": {"device_id": "3"}}, "'device_id' is set by the classifier; ask for the device"),
        (ON_CUDA, {"provider_options": {"gpu_mem_limit": 1}}, "expected names and values as texts"),
        (ON_CPU, {"provider_options": {"nonsense": "1"}}, "CPUExecutionProvider has no options, got {'nonsense': '1'}"),
        (ON_CPU, {"providers": []}, r"providers \[\]; expected different names"),
        (ON_CPU, {"providers": CPU}, "providers 'CPUExecutionProvider'; expected different names"),
        (ON_CPU, {"providers": [CPU, CPU]}, "expected different names"),
        (ON_CPU, {"providers": [(CPU, {})]}, "expected different names"),
        (ON_CPU, {"providers": 1}, "providers 1; expected different names"),
    ],
)
def test_what_contradicts_itself_is_refused(
    small_bundle: Path, device: Device, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(small_bundle, device, **options)


# What the live session says


def live(names: list[str], nodes: dict[str, int] | None, options: dict[str, Any] | None = None) -> SimpleNamespace:
    """A session of these providers with so many nodes on each; ``None`` stands for one that cannot tell."""
    session = SimpleNamespace(get_providers=lambda: names, get_provider_options=lambda: options or {})
    if nodes is not None:
        parts = [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [SimpleNamespace(op_type="Gather")] * count)
            for name, count in nodes.items()
        ]
        session.get_provider_graph_assignment_info = lambda: parts
    return session


@pytest.mark.parametrize(
    ("asked", "session", "message"),
    [
        ([CUDA], live([CPU], {CPU: 9}), rf"with \['{CUDA}'\], and ONNX Runtime chose \['{CPU}'\]; choose device 'cpu'"),
        ([TENSORRT, CUDA], live([CUDA, CPU], {CUDA: 9}), r"and ONNX Runtime chose \['CUDA"),
        ([TENSORRT, CUDA], live([CUDA, TENSORRT, CPU], {CUDA: 9}), r"and ONNX Runtime chose \['CUDA"),
        ([TENSORRT], live([TENSORRT, CUDA, CPU], {TENSORRT: 9}), r"and ONNX Runtime chose \['Tens"),
        (
            [CUDA],
            live([CUDA, CPU], {CUDA: 7, CPU: 2}),
            r"'CUDAExecution.*: 7, 'CPUE.* 2\} nodes, \{'CPUE.*': \{'Gather': 2\}\}; add CPUEx",
        ),
        ([CUDA, CPU], live([CUDA, CPU], {CPU: 9}), r"the CPU runs all of this model \(\{'CPUExecutionProvider': 9\}\)"),
        ([CUDA], live([CUDA, CPU], None), "does not tell which provider runs which node; install 1.31 or newer"),
    ],
)
def test_a_session_that_is_not_what_was_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], session: Any, message: str
) -> None:
    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: session)
    with pytest.raises(ProviderUnavailable, match=message):
        module._session("model.onnx", Device("cuda"), [(name, {}) for name in asked], 1, False)


@pytest.mark.parametrize(
    ("asked", "session"),
    [
        ([CUDA], live([CUDA, CPU], {CUDA: 9})),
        ([CUDA, CPU], live([CUDA, CPU], {CUDA: 7, CPU: 2})),
        ([TENSORRT, CUDA], live([TENSORRT, CUDA, CPU], {TENSORRT: 1, CUDA: 3})),
    ],
)
def test_a_session_that_is_what_was_asked_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], session: Any
) -> None:
    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    seen = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, **others: seen.append((options, others)) or session
    )
    assert module._session("model.onnx", Device("cuda"), [(name, {}) for name in asked], 1, False) is session
    ((options, others),) = seen
    assert others["enable_fallback"] == 0
    if CPU in asked:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.disable_cpu_ep_fallback")
    else:
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_options_that_a_provider_forgot_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    name = "SomeExecutionProvider"
    session = live([name, CPU], {name: 9}, {name: {"known": "1"}})
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: session)
    assert module._session("model.onnx", ON_CPU, [(name, {"known": "1"})], 1, False) is session
    with pytest.raises(UsageError, match="SomeExecutionProvider did not take its options other; it has known"):
        module._session("model.onnx", ON_CPU, [(name, {"known": "1", "other": "2"})], 1, False)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (
            'x.cc:63 FromProviderOptions [ONNXRuntimeError] : 1 : FAIL : Parse Unknown provider option: "nonsense".',
            UsageError,
            r'CUDAExecutionProvider of ONNX Runtime .* refuses its options \(.*"nonsense"\.\); correct them',
        ),
        (
            'Failed to parse provider option "device_id": Invalid device ID: 7, must be between 0 (inclusive) and 1',
            ProviderUnavailable,
            r"device 'cuda:1' does not run this model with CUDAExecutionProvider \(.*Invalid device ID: 7",
        ),
        (
            "cuda_call.cc:154 CudaCall() CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ;",
            ProviderUnavailable,
            r"does not run this model with CUDAExecutionProvider \(CUDA failure 100: no CUDA-capable .* detected\); ",
        ),
    ],
)
def test_what_onnxruntime_refuses_on_a_gpu_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], message: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(error, match=message):
        module._session("model.onnx", ON_CUDA, [(CUDA, {})], 1, False)


@needs_no_gpu
def test_onnxruntime_itself_refuses_to_fall_back(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    with pytest.raises(ProviderUnavailable, match=r"was asked for with \['CUDA.*'\], and ONNX Runtime chose \['CPU"):
        Classifier.load(small_bundle, "cuda")


def test_nodes_that_cuda_does_not_take_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself refuses them without a word of which they are."""
    asked = []

    def open_session(model: str, options: Any, **others: Any) -> Any:
        asked.append(options.get_session_config_entry("session.disable_cpu_ep_fallback"))
        if asked[-1] == "1":
            raise RuntimeError(
                "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has "
                "been explicitly disabled by the user."
            )
        return live([CUDA, CPU], {CUDA: 7, CPU: 2})

    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(ProviderUnavailable, match=r"other providers run a part .*\{'Gather': 2\}\}; add CPUExecution"):
        module._session("model.onnx", ON_CUDA, [(CUDA, {})], 1, False)
    assert asked == ["1", "0"]


# The CPU


def test_the_cpu_backend_takes_any_batch_and_tells_what_it_is(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    backend, reason = open_backend(bundle, "cpu", BackendOptions(providers=[CPU]))
    assert (backend.device, reason, backend.batch_sizes, backend.concurrency) == ("cpu", "as asked", (), 1)
    assert backend.details["providers"] == [CPU]
    assert backend.details["nodes"][CPU] > 9
    for count in (1, 3, 70):
        logits, embedding, _ = backend.run(np.zeros((count, 8, 8, 3), np.uint8))
        assert len(logits) == len(embedding) == count
    backend.close()
    backend.close()
    with pytest.raises(ClassifierClosed, match="this backend is closed"):
        backend.run(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_model_that_onnxruntime_refuses(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    damaged = dataclasses.replace(bundle, contents={**bundle.contents, "model.onnx": b"\x08\x0anonsense"})
    with pytest.raises(ArtifactError, match="refuses the model"):
        module.OnnxRuntimeBackend(damaged, ON_CPU, BackendOptions())
    unlisted = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files={}))
    with pytest.raises(ArtifactError, match=r"lists no model.onnx, which the runtime needs; export with --formats"):
        module.OnnxRuntimeBackend(unlisted, ON_CPU, BackendOptions())


def test_a_model_that_does_not_run_or_gives_something_else(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    backend = module.OnnxRuntimeBackend(bundle, ON_CPU, BackendOptions())
    with pytest.raises(RunError, match=r"cannot run the model on 2 images \(.*\); use a smaller batch"):
        backend.run(np.zeros((2, 9, 9, 3), np.uint8))
    wrong = np.zeros((2, 3), np.float32), np.zeros((2, 24))
    backend._runs = Unbound({None: SimpleNamespace(run=lambda names, feed: wrong)}, [1], (8, 8, 3), on_gpu=False)
    with pytest.raises(ArtifactError, match=r"gives \[\(2, 3\), \(2, 24\)\] where the manifest has \[\(2, 2\), "):
        backend.run(np.zeros((2, 8, 8, 3), np.uint8))
