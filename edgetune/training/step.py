"""One update of the weights from one batch: in parts where memory or the recipe wants it, over all processes.

It knows no epochs and no data beyond a batch. It may import errors, progress and this package.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgetune.errors import ConfigError
from edgetune.progress import Progress
from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.compiling import Compiling, Forward
from edgetune.training.features import Batch
from edgetune.training.share import Share

# Of logits [N, K] and what they were computed from: a scalar, the mean over the rows. From the means over a
# batch's parts the loop makes the mean over the batch.
Loss = Callable[[Tensor, Batch], Tensor]


class Stepper:
    """Takes a phase's steps.

    Attributes:
        most: images of a micro-batch, over all processes; halved where a GPU's memory does not do.
        compiling: whether steps are compiled; None: that is not asked.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        accelerator: Accelerator,
        *,
        clip: float,
        most: int,
        compiling: Compiling | None = None,
        progress: Progress,
    ) -> None:
        """Prepare a phase, whose parameters already learn or not.

        Args:
            net: what takes the batches.
            loss: of its logits.
            optimizer: of the parameters.
            scaler: of the loss, for float16.
            accelerator: where everything is.
            clip: largest norm of the gradient; 0: off.
            most: images of a micro-batch.
            compiling: asked which way the steps go.
            progress: told where memory does not do.
        """
        self.most = most
        self.compiling = compiling
        self._own = net
        self._net = net
        self._loss = loss
        self._optimizer = optimizer
        self._scaler = scaler
        self._accelerator = accelerator
        self._clip = clip
        self._progress = progress
        self._fits = False
        # What all processes' gradients are averaged of.
        self._shared: list[nn.Parameter] = []

    def take(self, batch: Batch) -> Tensor:
        """Update the weights once.

        Returns:
            Three sums over the batch, of all processes, float64 on the accelerator: losses, right answers, and
            images with a label.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
            ConfigError: parts of one image that BatchNorm cannot learn from.
        """
        draws = _Draws(self._accelerator)
        if ranks.size() > 1 and self._net is self._own:
            self._net = self._averaging(batch, draws)
        # Memory that does for one step does for the next: only the first can fail in its middle.
        kept = [] if self._fits else _copies(self._own)
        self._look_at_compiling(batch, draws)
        while True:
            try:
                found, compiled = self._passes(batch, draws)
                break
            except torch.OutOfMemoryError:
                if ranks.size() > 1 or min(self.most, len(batch.inputs)) < 2:
                    raise
            # Here, where the error and with it the tensors of the failed pass are gone.
            self._shrink(len(batch.inputs))
            self._optimizer.zero_grad()
            draws.again()
            for buffer, before in zip(self._own.buffers(), kept, strict=bool(kept)):
                buffer.copy_(before)
        self._fits = True
        self._update()
        if self.compiling and self.compiling.verdict is None:
            self.compiling.end(batch.rows, compiled)
            self._tell(self.compiling)
        return ranks.total(found)

    def _look_at_compiling(self, batch: Batch, draws: "_Draws") -> None:
        if not self.compiling or self.compiling.verdict is not None:
            return
        if self.compiling.due():
            rows = ranks.parts(batch.rows, self.most)[0]
            part = _rows(batch, 0, rows.stop - rows.start)
            self.compiling.compile(lambda forward: self._rehearse(forward, part, draws), len(part.inputs))
        self._tell(self.compiling)
        self.compiling.begin()

    def _shrink(self, images: int) -> None:
        self.most = (min(self.most, images) + 1) // 2
        self._fits = False
        if self.compiling:
            self.compiling.give_up("not used: the GPU's memory does not do for whole batches")
        if self._accelerator.name == "cuda":
            torch.cuda.empty_cache()
        self._progress.line(
            f"the GPU's memory does not do for {images} inputs at once: they go through in parts of {self.most}, "
            "and the weights are updated once for all of them (BatchNorm sees the parts)"
        )

    def _passes(self, batch: Batch, draws: "_Draws") -> tuple[Tensor, bool]:
        """Run all parts forward and backward; return their sums, and whether any was compiled."""
        cuts = ranks.parts(batch.rows, self.most)
        found = torch.zeros(3, dtype=torch.float64, device=batch.inputs.device)
        done, compiled = 0, False
        for index, rows in enumerate(cuts):
            part = _rows(batch, done, rows.stop - rows.start)
            done += len(part.inputs)
            forward = self.compiling.forward(len(part.inputs)) if self.compiling else self._net
            compiled = compiled or forward is not self._net
            with ExitStack() as stack:
                if len(part.inputs) < batch.rows and forward is self._net:
                    draws.again()
                    stack.enter_context(Share(rows, batch.rows))
                if index < len(cuts) - 1:
                    stack.enter_context(self._silent())
                found += self._learn(forward, part, batch.rows, first=not index)
        return found, compiled

    def _learn(self, forward: Forward, part: Batch, whole: int, first: bool) -> Tensor:
        """Add a part's gradient, and return the sums that it contributes."""
        count = len(part.inputs)
        logits, loss = self._forward(forward, part)
        if first:
            # Not before the forward pass: it would take the memory that the new gradients find here.
            self._optimizer.zero_grad()
        # The processes' gradients are averaged, the parts' added.
        share = count * ranks.size() / whole
        torch.autograd.backward(self._scaler.scale(loss if share == 1 else loss * share))
        logits, found = logits.detach(), torch.zeros(3, dtype=torch.float64, device=loss.device)
        found[0] = loss.detach() * count
        if part.targets.ndim == 1:
            found[1] = (logits.argmax(1) == part.targets).sum()
            found[2] = (part.targets >= 0).sum()
        return found

    def _forward(self, forward: Forward, part: Batch) -> tuple[Tensor, Tensor]:
        with self._accelerator.mixed():
            try:
                logits = forward(part.inputs).flatten(1)
            except ValueError as error:
                # What torch's BatchNorm says of a batch of one whose maps have shrunk to one value.
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ConfigError(
                    "finetune.batch: 1 input at once is too few for BatchNorm", hint="2 or more"
                ) from error
            except RuntimeError as error:
                if len(part.inputs) or "0 elements" not in str(error):
                    raise
                raise ConfigError(
                    f"finetune.batch: the last batch has fewer inputs than there are processes ({ranks.size()}), "
                    "and the network takes no empty one",
                    hint="another finetune.batch, or fewer processes",
                ) from error
            if len(part.inputs):
                return logits, self._loss(logits, part)
            # A process without images still takes part in what the others add up.
            return logits, sum((p.sum() for p in self._shared), logits.sum()) * 0

    def _update(self) -> None:
        if self._clip:
            self._scaler.unscale_(self._optimizer)
            learning = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(learning, self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _averaging(self, batch: Batch, draws: "_Draws") -> nn.Module:
        """Let gradients become their means over all processes; buffers are the same in all already.

        What takes no part in this phase's loss gets no gradient, as in a single process; torch would wait for one.
        """
        rows = ranks.parts(batch.rows, self.most)[0]
        self._optimizer.zero_grad()
        with Share(rows, batch.rows):
            reached = self._rehearse(self._own, _rows(batch, 0, rows.stop - rows.start), draws)
        # A process without images here may not have what others have.
        counts = ranks.total(torch.tensor(reached, dtype=torch.int32)).tolist()
        self._shared = [p for p, count in zip(self._own.parameters(), counts, strict=True) if count]
        idle = [
            p
            for p, count in zip(self._own.parameters(), counts, strict=True)
            if p.requires_grad and not count
        ]
        for parameter in idle:
            parameter.requires_grad_(False)
        try:
            with warnings.catch_warnings():
                # The option has a new name from torch 2.14 on.
                warnings.simplefilter("ignore", FutureWarning)
                return DistributedDataParallel(self._own, broadcast_buffers=False)
        finally:
            for parameter in idle:
                parameter.requires_grad_(True)

    def _rehearse(self, forward: Forward, part: Batch, draws: "_Draws") -> list[bool]:
        """Run a part forward and backward, leave everything as it was, and tell which parameters it reached."""
        kept = _copies(self._own)
        try:
            _, loss = self._forward(forward, part)
            torch.autograd.backward(self._scaler.scale(loss))
            return [parameter.grad is not None for parameter in self._own.parameters()]
        finally:
            self._optimizer.zero_grad()
            draws.again()
            for buffer, before in zip(self._own.buffers(), kept, strict=True):
                buffer.copy_(before)

    def _tell(self, compiling: Compiling) -> None:
        if compiling.verdict is not None:
            self._progress.line(f"torch.compile: {compiling.verdict.why}")

    def _silent(self) -> AbstractContextManager[Any]:
        """Keep gradients to this process until the last part's."""
        return self._net.no_sync() if isinstance(self._net, DistributedDataParallel) else nullcontext()


class _Draws:
    """The state of the random numbers at a step's beginning."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._device = accelerator.device if accelerator.name == "cuda" else None
        self._host = torch.get_rng_state()
        self._there = torch.cuda.get_rng_state(self._device) if self._device else None

    def again(self) -> None:
        """Let the same numbers be drawn again."""
        torch.set_rng_state(self._host)
        if self._there is not None and self._device:
            torch.cuda.set_rng_state(self._there, self._device)


def _copies(net: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in net.buffers()]


def _rows(batch: Batch, first: int, count: int) -> Batch:
    """Return some rows of a batch."""
    if count == len(batch.inputs):
        return batch
    rows = slice(first, first + count)
    return Batch(batch.inputs[rows], batch.targets[rows], batch.picks[rows], batch.view, batch.whole)
