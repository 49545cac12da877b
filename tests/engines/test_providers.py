"""ONNX Runtime's providers: what is asked for, what is told where one is not here, and that none is swapped."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgetune.device.program import cuda
from edgetune.engines import onnxruntime as module
from edgetune.engines.onnxruntime import PROVIDERS, Session
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError
from edgetune.quant import half
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model

GPU = sorted(set(PROVIDERS) - {"cpu"})
RELU = """<ir_version: 8, opset_import: ["": 17]>
relu (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu(x) }"""
Pretended = list[tuple[Any, dict[str, Any]]]


def relu() -> bytes:
    return onnx.parser.parse_model(RELU).SerializeToString()


def convolution(opset: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": {opset}]>
    net (float[1, 3, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 3, 3, 3] w = {{{", ".join(216 * ["0.5"])}}}>
    {{ c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(c) }}""")
    model.graph.node[0].name, model.graph.node[1].name = "conv", "relu"
    return model


def test_every_provider_is_one_that_onnx_runtime_knows() -> None:
    assert set(PROVIDERS) == {"cpu", "cuda", "tensorrt"}
    titles = [provider.title for provider in PROVIDERS.values()]
    assert len(set(titles)) == len(titles)
    for provider in PROVIDERS.values():
        assert set(provider.names) <= set(ort.get_all_providers())
        # What it leaves is run all the same, in the end on the CPU.
        assert provider.names[-1] == "CPUExecutionProvider"
        assert all(type(value) is bool for value in provider.options(relu()).values())


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_runs_or_says_why_not(name: str) -> None:
    batch = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    try:
        session = Session(relu(), threads=1, provider=name)
    except MissingTool as error:
        if name == "cpu":
            raise
        pytest.skip(error.message)
    np.testing.assert_allclose(session.run(batch)[0], np.maximum(batch, 0), atol=1e-6)
    assert session.engine == f"ONNX Runtime {ort.__version__}, {PROVIDERS[name].title}"
    assert set(session.placed) <= {PROVIDERS[name].title}


def test_the_cpu_is_what_nobody_has_to_ask_for() -> None:
    session = Session(relu(), threads=1)
    assert session.engine.endswith(", CPU")
    assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tensort'") as failed:
        Session(relu(), provider="tensort")
    assert "tensorrt" in failed.value.hint


@pytest.mark.parametrize("name", GPU)
def test_nothing_is_loaded_before_the_driver_has_answered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ask", lambda: (None, "no CUDA driver: not here"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(ort.get_all_providers()))
    for touched in ("InferenceSession", "preload_dlls"):
        monkeypatch.setattr(ort, touched, lambda *_, **__: pytest.fail("touched"), raising=False)
    with pytest.raises(MissingTool, match="no CUDA driver: not here") as failed:
        Session(relu(), provider=name)
    assert failed.value.exit_code == 4
    assert "edgetune[gpu]" in failed.value.hint


@pytest.mark.parametrize("name", GPU)
def test_a_build_without_the_provider_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ask", lambda: ({"name": "Orin"}, ""))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingTool, match=PROVIDERS[name].names[0]) as failed:
        Session(relu(), provider=name)
    assert "edgetune[gpu]" in failed.value.hint
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in failed.value.hint


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretended]:
    """A driver that answers and a build with every provider; sessions run on the CPU and say what they are told to."""
    real = ort.InferenceSession

    def make(
        took: list[str], placed: dict[str, int] | None = None, error: Exception | None = None
    ) -> Pretended:
        asked: Pretended = []

        class OnGpu(real):  # type: ignore[misc, valid-type]
            def __init__(self, source: Any, options: Any, providers: Any, **kwargs: Any) -> None:
                asked.append((providers, kwargs))
                if error:
                    raise error
                super().__init__(source, options, providers=["CPUExecutionProvider"])

            def get_providers(self) -> list[str]:
                return took

            def get_provider_graph_assignment_info(self) -> list[Any]:
                return [
                    SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
                    for name, count in (placed or {}).items()
                ]

        monkeypatch.setattr(cuda, "ask", lambda: ({"name": "Orin"}, ""))
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(ort.get_all_providers()))
        monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"), raising=False)
        monkeypatch.setattr(ort, "InferenceSession", OnGpu)
        monkeypatch.setattr(module, "_lacking", lambda _: "")
        return asked

    return make


@pytest.mark.parametrize("name", GPU)
def test_who_runs_what_is_told(
    name: str, pretend: Callable[..., Pretended], capsys: pytest.CaptureFixture[str]
) -> None:
    names, title = list(PROVIDERS[name].names), PROVIDERS[name].title
    asked = pretend(names, {names[0]: 7, "CPUExecutionProvider": 2})
    session = Session(relu(), threads=1, provider=name)
    assert session.engine == f"ONNX Runtime {ort.__version__}, {title}"
    assert session.placed == {title: 7, "CPU": 2}
    ((providers, kwargs),) = asked
    assert [providers[0][0], *providers[1:]] == names
    assert kwargs == {"enable_fallback": 0}
    assert capsys.readouterr().out == ""  # --json goes there


@pytest.mark.parametrize("name", GPU)
def test_a_fallback_is_an_error(name: str, pretend: Callable[..., Pretended]) -> None:
    pretend(["CPUExecutionProvider"])
    with pytest.raises(
        StageError, match=f"asked for {PROVIDERS[name].title} and took CPUExecutionProvider"
    ) as e:
        Session(relu(), threads=1, provider=name)
    assert e.value.exit_code == 6


@pytest.mark.parametrize("name", GPU)
def test_a_provider_that_takes_no_operator_is_an_error(name: str, pretend: Callable[..., Pretended]) -> None:
    pretend(list(PROVIDERS[name].names), {"CPUExecutionProvider": 9})
    with pytest.raises(StageError, match="takes none of its operators; ONNX Runtime gave 9 to CPU"):
        Session(relu(), threads=1, provider=name)


def test_an_onnx_runtime_that_does_not_tell_who_runs_what(pretend: Callable[..., Pretended]) -> None:
    pretend(list(PROVIDERS["cuda"].names))
    assert Session(relu(), threads=1, provider="cuda").placed == {}


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        # As 1.31.1 said them, without the paths.
        (
            RuntimeError("cuda_call.cc:146 CudaCall(ERRTYPE) CUDA failure 35: too old ; GPU=-1 ; hostname=h"),
            StageError,
            "with CUDA: CUDA failure 35: too old$",
        ),
        (
            RuntimeError("Please install TensorRT libraries\nas said"),
            StageError,
            "install TensorRT libraries$",
        ),
        (module.raised.InvalidProtobuf("Protobuf parsing failed."), ArtifactError, "Protobuf parsing failed"),
    ],
)
def test_what_fails_while_loading(
    error: Exception, kind: type[EdgetuneError], told: str, pretend: Callable[..., Pretended]
) -> None:
    pretend([], error=error)
    with pytest.raises(kind, match=told):
        Session(relu(), threads=1, provider="cuda")


def test_a_library_that_is_missing_is_named(
    pretend: Callable[..., Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ({"error": RuntimeError("Please install TensorRT libraries")}, {}):
        pretend(["CPUExecutionProvider"], **given)
        monkeypatch.setattr(module, "_lacking", lambda _: "libnvinfer.so.10: cannot open shared object file")
        with pytest.raises(MissingTool, match=r"its part for TensorRT: libnvinfer\.so\.10"):
            Session(relu(), threads=1, provider="tensorrt")


def test_the_missing_library_is_asked_of_the_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi/libonnxruntime_providers_cuda.so"
    assert module._lacking("cuda") == ""
    library.write_bytes(b"no library")
    assert module._lacking("cuda") == ""  # broken otherwise
    monkeypatch.setattr(module.ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError(SAID)))
    assert module._lacking("cuda") == SAID


SAID = "libcublasLt.so.13: cannot open shared object file: No such file or directory"


def test_tensorrt_is_allowed_the_types_of_the_graph_alone(tmp_path: Path) -> None:
    batch = list(np.random.default_rng(0).standard_normal((4, 1, 3, 8, 8)).astype(np.float32))
    graphs = {
        (False, False): convolution(17),
        (True, False): quantize_model(convolution(17), batch, "weak")[0],
        (False, True): half.render(prepare(convolution(19), 19)),
        (True, True): quantize_model(convolution(17), batch, "strong")[0],
    }
    for (int8, fp16), model in graphs.items():
        onnx.save(model, tmp_path / "m.onnx")
        for source in (model.SerializeToString(), tmp_path / "m.onnx"):
            found = PROVIDERS["tensorrt"].options(source)
            assert found == {"trt_int8_enable": int8, "trt_fp16_enable": fp16}
    assert PROVIDERS["tensorrt"].options(b"not onnx") == {}
    assert PROVIDERS["tensorrt"].options(tmp_path / "absent.onnx") == {}
