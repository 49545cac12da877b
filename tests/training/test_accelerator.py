import pytest
import torch

from edgetune.errors import ConfigError, MissingTool, StageError
from edgetune.training.accelerator import choose_accelerator


def test_cpu_computes_in_float32() -> None:
    chosen = choose_accelerator("cpu")
    assert chosen.name == "cpu"
    assert chosen.autocast is None
    with chosen.mixed():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_accelerator("auto").name == "cpu"


def test_cuda_without_a_gpu_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingTool) as caught:
        choose_accelerator("cuda")
    assert "--accelerator auto" in caught.value.hint


@pytest.mark.parametrize(("capability", "fast"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_mixed_precision_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    chosen = choose_accelerator("auto")
    assert (chosen.name, chosen.autocast, chosen.layout) == ("cuda", fast, torch.channels_last)


def test_an_unknown_accelerator_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        choose_accelerator("tpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_translated(error: Exception) -> None:
    with pytest.raises(StageError) as caught, choose_accelerator("cpu").guarded():
        raise error
    assert "finetune.batch" in caught.value.hint
    assert caught.value.__cause__ is error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug"), choose_accelerator("cpu").guarded():
        raise RuntimeError("a bug")
