import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.errors import ArtifactError, StageError
from edgetune.training.resume import (
    STATE_FILE,
    State,
    fill_optimizer,
    load_state,
    optimizer_tensors,
    save_state,
)

STATE = State(
    {"net/weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}, {"step": 5, "loss": 0.1}
)


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "resume", STATE, 1, "task")
    found = load_state(tmp_path / "resume", "task")
    assert found is not None
    assert found.counters == STATE.counters
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in STATE.tensors.items())


def test_only_the_last_state_stays(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_state(tmp_path, STATE, epoch, "task")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-3.safetensors", STATE_FILE]


def test_a_kill_before_the_switch_leaves_the_last_state(tmp_path: Path) -> None:
    save_state(tmp_path, STATE, 1, "task")
    (tmp_path / "epoch-2.safetensors").write_bytes(b"half")
    assert load_state(tmp_path, "task") is not None


def test_nothing_there_or_another_task_is_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none", "task") is None
    save_state(tmp_path, STATE, 1, "task")
    assert load_state(tmp_path, "other") is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def recount(path: Path) -> None:
    path.write_text(path.read_text().replace('\\"step\\": 5', '\\"step\\": 6'))


DAMAGE = {
    "tensors cut": ("epoch-1.safetensors", cut),
    "tensors flipped": ("epoch-1.safetensors", flip),
    "tensors gone": ("epoch-1.safetensors", Path.unlink),
    "not JSON": (STATE_FILE, cut),
    "a list": (STATE_FILE, lambda path: path.write_text("[]")),
    "no keys": (STATE_FILE, lambda path: path.write_text('{"schema_version": 1, "fingerprint": "task"}')),
    "not text": (STATE_FILE, lambda path: path.write_bytes(b"\xff\xfe")),
    "counters changed": (STATE_FILE, recount),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_damage_is_noticed(tmp_path: Path, kind: str) -> None:
    save_state(tmp_path, STATE, 1, "task")
    name, harm = DAMAGE[kind]
    before = (tmp_path / name).read_bytes()
    harm(tmp_path / name)
    assert not (tmp_path / name).exists() or (tmp_path / name).read_bytes() != before
    with pytest.raises(ArtifactError):
        load_state(tmp_path, "task")


def test_a_pointer_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "resume"
    save_state(inside, STATE, 1, "task")
    (inside / "epoch-1.safetensors").rename(tmp_path / "outside.safetensors")
    pointer = json.loads((inside / STATE_FILE).read_text())
    (inside / STATE_FILE).write_text(json.dumps({**pointer, "tensors": "../outside.safetensors"}))
    with pytest.raises(ArtifactError):
        load_state(inside, "task")


def test_a_folder_that_is_a_file_is_a_stage_error(tmp_path: Path) -> None:
    (tmp_path / "resume").write_text("")
    with pytest.raises(StageError):
        save_state(tmp_path / "resume", STATE, 1, "task")


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_goes_on_as_if_never_stopped(
    tmp_path: Path, kind: str, layout: torch.memory_format
) -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        values = torch.arange(120.0).view(2, 3, 4, 5).contiguous(memory_format=layout)
        weight = torch.nn.Parameter(values)
        if kind == "adamw":
            return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)
        return weight, torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)

    def steps(weight: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    straight, one = make()
    steps(straight, one, 6)
    stopped, two = make()
    steps(stopped, two, 3)
    resumed, three = make()
    with torch.no_grad():
        resumed.copy_(stopped)
    save_state(tmp_path, State(optimizer_tensors(two), {}), 1, "task")
    found = load_state(tmp_path, "task")
    assert found is not None
    fill_optimizer(three, found.tensors)
    steps(resumed, three, 3)
    assert torch.equal(straight, resumed)
