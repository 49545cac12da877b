"""Where training runs, and in which numbers.

It knows no network and no data. It may import errors, and this package's ranks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetune.errors import ConfigError, MissingTool, StageError
from edgetune.training import ranks

ACCELERATORS = ("auto", "cpu", "cuda")
# Without it cuBLAS may add up in another order each time (CUDA's cuBLAS guide, results reproducibility).
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Accelerator:
    """A device and how it is used.

    Attributes:
        device: where networks and batches live.
        autocast: the type of mixed precision; None: everything in float32.
        layout: of images and kernels in memory. Channels last on CPUs as well: mobilenet_v2 on two cores
            takes 0.69 of the time per training step at 224 px, 0.56 at 32 px and width 0.35.
    """

    device: torch.device
    autocast: torch.dtype | None
    layout: torch.memory_format

    @property
    def name(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.type

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network here, in place."""
        return net.to(device=self.device).to(memory_format=self.layout)

    def move(self, batch: Tensor) -> Tensor:
        """Move a tensor here; images [N, C, H, W] get the memory layout as well."""
        moved = batch.to(self.device, non_blocking=True)
        return moved.contiguous(memory_format=self.layout) if moved.ndim == 4 else moved

    def mixed(self) -> torch.autocast:
        """Return the context that forward passes run in."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def wait(self) -> None:
        """Wait until everything asked of the device is done, for whoever looks at the clock."""
        if self.name == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def kernels(self, deterministic: bool) -> Iterator[None]:
        """Choose how the device computes while the block runs, and restore it afterwards.

        Args:
            deterministic: only kernels that give the same bits each time; else the fastest for each size.
        """
        cudnn = torch.backends.cudnn
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        tuned = (cudnn.deterministic, cudnn.benchmark)
        workspace = os.environ.get(WORKSPACE)
        try:
            if deterministic:
                os.environ.setdefault(WORKSPACE, ":4096:8")
                torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic, cudnn.benchmark = tuned
            if workspace is None:
                os.environ.pop(WORKSPACE, None)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Translate what torch says of too little memory, and of kernels that are not deterministic.

        Raises:
            StageError: the memory does not do.
            ConfigError: an operation has no deterministic kernel, and only such ones are allowed.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise _too_large(self.name) from error
        except RuntimeError as error:
            if "does not have a deterministic implementation" in str(error):
                raise ConfigError(
                    f"finetune.deterministic: {str(error).split(', but')[0]} on {self.name}",
                    hint="finetune.deterministic: false",
                ) from error
            if "can't allocate memory" not in str(error):
                raise
            raise _too_large(self.name) from error
        except MemoryError as error:
            raise _too_large(self.name) from error


def choose_accelerator(name: str) -> Accelerator:
    """Return the device to train on.

    Args:
        name: `auto` (a CUDA GPU where there is one), `cpu` or `cuda`. Of several processes on one machine each
            takes a GPU of its own.

    Raises:
        ConfigError: another name, or more processes than GPUs.
        MissingTool: `cuda` is asked for and torch sees no GPU.
    """
    if name not in ACCELERATORS:
        raise ConfigError(f"accelerator {name!r}: write one of {', '.join(ACCELERATORS)}")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise MissingTool(
                "accelerator cuda: torch sees no CUDA GPU here",
                hint="use --accelerator auto, or see what edgetune doctor says about the driver",
            )
        return Accelerator(torch.device("cpu"), None, torch.channels_last)
    device = torch.device("cuda")
    if ranks.size() > 1:
        number, processes = ranks.place()
        if processes > torch.cuda.device_count():
            raise ConfigError(
                f"{processes} processes for {torch.cuda.device_count()} GPUs on this machine",
                hint=f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --accelerator cpu",
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # bfloat16 has float32's range and needs no loss scaling; GPUs before Ampere compute only float16 fast.
    fast = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    return Accelerator(device, fast, torch.channels_last)


def _too_large(device: str) -> StageError:
    return StageError(
        f"the {'GPU' if device == 'cuda' else 'machine'}'s memory does not do for a batch",
        hint="lower finetune.batch (finetune.accumulate makes up for it), or model.size_px (of texts "
        "model.length)",
    )
