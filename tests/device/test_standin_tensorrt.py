"""The stand-in for TensorRT refuses whatever a version does not have: else the contract would prove nothing."""

from pathlib import Path
from typing import Any

import pytest
import standin_recorded as made
import standin_tensorrt as standin

pytestmark = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)


def logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.heard.append(msg)

    return Logger()


@every
def test_what_is_recorded_is_there_and_nothing_else(recording: Path) -> None:
    trt = standin.load(recording)
    config = trt.Builder(logger(trt)).create_builder_config()
    for missing in ("INT8_WEIGHTS", "STRICT"):
        assert not hasattr(trt.BuilderFlag, missing)
    assert hasattr(trt.BuilderFlag, "INT8") == (trt.__version__[:2] != "11")
    assert hasattr(config, "max_workspace_size") == trt.__version__.startswith("8")
    assert hasattr(trt, "IProgressMonitor") != trt.__version__.startswith("8")
    for act in (
        lambda: config.wrong,
        lambda: setattr(config, "wrong", 1),
        lambda: trt.Wrong,
        lambda: trt.BuilderFlag.WRONG,
        lambda: trt.Builder(logger(trt)).wrong(),
    ):
        with pytest.raises(AttributeError):
            act()


@pytest.mark.slow
@every
def test_calls_that_fit_no_overload_are_refused(recording: Path) -> None:
    trt = standin.load(recording)
    log = logger(trt)
    builder = trt.Builder(log)
    network, config = builder.create_network(0), builder.create_builder_config()
    for act in (
        lambda: trt.Builder(),
        lambda: trt.Builder(log, 1),
        lambda: trt.Builder(logger=log, more=1),
        lambda: trt.Builder("log"),
        lambda: trt.INetworkDefinition(),
        lambda: builder.create_network(flag=0),
        lambda: builder.create_network(trt.NetworkDefinitionCreationFlag),
        lambda: builder.build_serialized_network(network),
        lambda: builder.build_serialized_network(config, network),
        lambda: config.set_flag(1),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5),
        lambda: config.set_timing_cache(config.create_timing_cache(b"")),
        lambda: config.create_timing_cache("text"),
        lambda: trt.OnnxParser(network, log).parse("path"),
        lambda: 1 << trt.MemoryPoolType.WORKSPACE,
    ):
        with pytest.raises(TypeError):
            act()


@every
def test_a_subclass_has_to_call_its_base(recording: Path) -> None:
    trt = standin.load(recording)

    class Logger(trt.ILogger):
        def __init__(self) -> None: ...

    with pytest.raises(TypeError, match="must be called when overriding"):
        Logger()


@every
def test_what_nobody_wrote_does_not_pass_in_silence(recording: Path) -> None:
    trt = standin.load(recording)
    with pytest.raises(NotImplementedError, match=r"IBuilderConfig\.reset"):
        trt.Builder(logger(trt)).create_builder_config().reset()


@every
def test_host_memory_is_a_buffer_and_no_more(recording: Path) -> None:
    trt = standin.load(recording)
    memory = trt.Builder(logger(trt)).create_builder_config().create_timing_cache(b"").serialize()
    assert len(bytes(memoryview(memory))) == memory.nbytes
    for act in (lambda: len(memory), lambda: memory[0], lambda: memory.hex(), lambda: list(memory)):
        with pytest.raises((TypeError, AttributeError)):
            act()


def test_numbers_of_enums_differ_by_version() -> None:
    assert len(standin.RECORDINGS) >= 6
    numbers = {int(standin.load(path).BuilderFlag.GPU_FALLBACK) for path in standin.RECORDINGS}
    assert len(numbers) > 2


@every
def test_the_first_logger_hears_everything(recording: Path) -> None:
    trt = standin.load(recording)
    first, second = logger(trt), logger(trt)
    trt.Builder(first)
    assert trt.Runtime(second).deserialize_cuda_engine(b"no plan") is None
    assert len(first.heard) == 1
    assert "kPLAN_MAGIC_TAG" in first.heard[0]
    assert not second.heard


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("f(self: A) -> None", []),
        ("f(self: A, x: int = 0, y: List[Dims]) -> B", [("x", "int", True), ("y", "List[Dims]", False)]),
        ("f(self: A, s: S = <S.A: 0>, t: Tuple[bool, List[int]])", None),
    ],
)
def test_signatures_are_read(signature: str, arguments: Any) -> None:
    expected = [("s", "S", True), ("t", "Tuple[bool, List[int]]", False)] if arguments is None else arguments
    assert made.arguments_of(signature) == expected
