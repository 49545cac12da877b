import os

import pytest
import torch

from edgetune.errors import ConfigError, MissingTool, StageError
from edgetune.training import ranks
from edgetune.training.accelerator import WORKSPACE, choose_accelerator


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


def test_deterministic_kernels_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    cudnn = torch.backends.cudnn

    def now() -> tuple[bool, bool, bool, str | None]:
        on = torch.are_deterministic_algorithms_enabled()
        return on, cudnn.deterministic, cudnn.benchmark, os.environ.get(WORKSPACE)

    before = now()

    def stopped() -> None:
        with choose_accelerator("cpu").kernels(deterministic=True):
            assert now() == (True, True, False, ":4096:8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert now() == before
    with choose_accelerator("cpu").kernels(deterministic=False):
        assert now() == (False, False, True, None)
    assert now() == before
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with choose_accelerator("cpu").kernels(deterministic=True):
        assert now()[3] == ":16:8", "what the user has set stays"
    assert os.environ[WORKSPACE] == ":16:8"


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    cpu, indices = choose_accelerator("cpu"), torch.tensor([0, 0])

    def put() -> None:
        with cpu.kernels(deterministic=True), cpu.guarded():
            torch.zeros(2).put_(indices, torch.rand(2), accumulate=False)

    with pytest.raises(ConfigError, match=r"finetune\.deterministic: .* on cpu") as caught:
        put()
    assert caught.value.hint == "finetune.deterministic: false"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(ranks, "size", lambda: 4)
    monkeypatch.setattr(ranks, "place", lambda: (1, 2))
    assert choose_accelerator("auto").device == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)]
    monkeypatch.setattr(ranks, "place", lambda: (1, 4))
    with pytest.raises(ConfigError, match="4 processes for 2 GPUs") as caught:
        choose_accelerator("cuda")
    assert "--nproc-per-node 2" in caught.value.hint
