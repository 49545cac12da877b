"""Samples become to the bit what the workstation's own preprocessing makes of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetune.artifact import Artifact
from edgetune.data.images import normalise
from edgetune.device.program import plan
from edgetune.device.program.inputs import feeds, split
from edgetune.device.program.problem import Problem


def test_inputs_are_the_workstation_s(bundled: Callable[..., Path], tmp_path: Path) -> None:
    work = plan.load(bundled())
    preprocess = Artifact.load(tmp_path / "onnx").preprocess
    assert preprocess
    stored = np.fromfile(work.samples.inputs, np.uint8).reshape(work.samples.number, 3, 32, 32)
    assert work.samples.number > 3
    for one, pixels in zip(feeds(work), stored, strict=True):
        assert one == normalise(pixels[None], preprocess).tobytes()
    assert len(list(feeds(work, 2))) == 2


def test_stored_bytes_go_in_as_they_are_where_there_is_no_table(bundled: Callable[..., Path]) -> None:
    work = plan.load(bundled())
    work = work._replace(samples=work.samples._replace(table=""))
    assert b"".join(feeds(work)) == Path(work.samples.inputs).read_bytes()


def test_cut_samples_are_named(bundled: Callable[..., Path]) -> None:
    work = plan.load(bundled())
    path = Path(work.samples.inputs)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Problem, match=r"samples\.bin: ends within sample"):
        list(feeds(work))


def test_a_damaged_table_is_named(bundled: Callable[..., Path]) -> None:
    work = plan.load(bundled())
    Path(work.samples.table).write_bytes(b"\0" * 8)
    with pytest.raises(Problem, match=r"table\.bin: not 3 times 256 numbers"):
        list(feeds(work))


def test_a_text_s_inputs_lie_one_behind_the_other(bundled: Callable[..., Path], tmp_path: Path) -> None:
    tensors = plan.Tensor("input_ids", "int32", (1, 4)), plan.Tensor("attention_mask", "int32", (1, 4))
    stored = np.arange(2 * 2 * 4, dtype="<i4").reshape(2, 2, 4)
    (tmp_path / "tokens.bin").write_bytes(stored.tobytes())
    work = plan.load(bundled())
    samples = work.samples._replace(table="", number=2, inputs=str(tmp_path / "tokens.bin"))
    work = work._replace(input=tensors[0], more_inputs=tensors[1:], samples=samples)
    found = [split(work, one) for one in feeds(work)]
    assert [list(one) for one in found] == [["input_ids", "attention_mask"]] * 2
    for one, wanted in zip(found, stored, strict=True):
        assert [np.frombuffer(one[t.name], "<i4").tolist() for t in tensors] == wanted.tolist()
