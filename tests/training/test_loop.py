import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from several import several
from torch import nn

from edgetune.errors import ConfigError, StageError
from edgetune.progress import Silent
from edgetune.training import compiling, loop, ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.loop import Task, train
from edgetune.training.resume import STATE_FILE, load_state

MakeTask = Callable[..., Task]


class Recorder(Silent):
    """Keeps lines, and raises when it is told of an epoch."""

    def __init__(self, stop: str = "") -> None:
        self.lines: list[str] = []
        self.shown = 0
        self.open = 0
        self.stop = stop

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.open += 1
        if self.stop and what.startswith(self.stop):
            raise KeyboardInterrupt

    def advance(self, count: int = 1, **shown: float) -> None:
        self.shown += count

    def end(self) -> None:
        self.open = 0

    def line(self, text: str) -> None:
        self.lines.append(text)


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items() if "num_batches" not in name}


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    one, two = state(left), state(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("strategy", ["feature-extractor", "partial", "full", "gradual"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_strategy_learns_and_leaves_frozen_parts_alone(
    make_task: MakeTask, tiny: Any, strategy: str, optimizer: str
) -> None:
    net, before = tiny(), state(tiny())
    task = make_task(net, strategy=strategy, optimizer=optimizer, epochs=12, stages=1, learning_rate=0.05)
    course = train(net, task, Silent())
    assert course.history[-1]["loss"] < course.history[0]["loss"]
    best = course.history[course.best_epoch - 1]
    assert best["val_top1"] == max(entry["val_top1"] for entry in course.history)
    assert best["val_top1"] >= 0.6, "chance is a third"
    last = load_state(task.folder, task.fingerprint)
    assert last is not None
    changed = {
        name.split(".")[0]
        for name, tensor in before.items()
        if not torch.equal(last.tensors.get(f"net/{name}", tensor), tensor)
    }
    untouched = {name: t for name, t in before.items() if name.split(".")[0] not in changed}
    assert all(torch.equal(state(net)[name], tensor) for name, tensor in untouched.items())
    expected = {
        "feature-extractor": {"head"},
        "partial": {"second", "head"},
        "full": {"stem", "first", "second", "head"},
        "gradual": {"stem", "first", "second", "head"},
    }
    assert changed == expected[strategy], "weights and BatchNorm statistics"


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_task: MakeTask, tiny: Any) -> None:
    nets = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(1000 + number)
        net = tiny()
        torch.manual_seed(number)
        train(net, make_task(net, f"run{number}", strategy="full", seed=seed), Silent())
        nets.append(net)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


@pytest.mark.parametrize("epoch", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "full", "average": 0.9},
        {"strategy": "gradual", "optimizer": "sgd"},
        {"strategy": "feature-extractor"},
    ],
    ids=lambda s: s["strategy"],
)
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    make_task: MakeTask, tiny: Any, epoch: int, settings: dict[str, Any]
) -> None:
    straight = tiny()
    whole = train(straight, make_task(straight, "whole", epochs=6, **settings), Silent())
    net = tiny()
    with pytest.raises(KeyboardInterrupt):
        train(net, make_task(net, "cut", epochs=6, **settings), Recorder(stop=f"epoch {epoch}/"))
    resumed, said = tiny(), Recorder()
    course = train(resumed, make_task(resumed, "cut", epochs=6, **settings), said)
    assert same(straight, resumed)
    assert course.best_epoch == whole.best_epoch
    timeless = {"seconds", "waited_seconds", "images_per_second"}
    strip = [{k: v for k, v in entry.items() if k not in timeless} for entry in course.history]
    assert strip == [{k: v for k, v in entry.items() if k not in timeless} for entry in whole.history]
    going_on = [line for line in said.lines if line.startswith("going on")]
    assert going_on == ([f"going on after epoch {epoch - 1}/6"] if epoch > 1 else [])


def test_a_finished_training_is_not_trained_again(make_task: MakeTask, tiny: Any) -> None:
    first, again, said = tiny(), tiny(), Recorder()
    train(first, make_task(first, strategy="full"), Silent())
    train(again, make_task(again, strategy="full"), said)
    assert same(first, again)
    assert said.shown == 0


def test_damaged_state_starts_over_and_says_so(make_task: MakeTask, tiny: Any) -> None:
    net = tiny()
    task = make_task(net, strategy="full")
    train(net, task, Silent())
    (task.folder / STATE_FILE).write_text("{")
    again, said = tiny(), Recorder()
    train(again, make_task(again, strategy="full"), said)
    assert "training starts over" in said.lines[0]
    assert same(net, again)


def test_state_of_another_task_is_not_used(make_task: MakeTask, tiny: Any) -> None:
    net, other, said = tiny(), tiny(), Recorder()
    train(net, make_task(net, strategy="full"), Silent())
    train(other, make_task(other, strategy="full", fingerprint="other"), said)
    assert said.shown == 4 * 31


def test_one_line_per_epoch(make_task: MakeTask, tiny: Any) -> None:
    net, said = tiny(), Recorder()
    train(net, make_task(net, strategy="feature-extractor", epochs=2), said)
    assert len(said.lines) == 2
    assert said.lines[1].startswith("epoch 2/2 head  loss ")
    assert said.lines[1].endswith(" s")
    assert said.shown == 2 * 31
    assert said.open == 0


def test_patience_stops_and_keeps_the_best_epoch(
    make_task: MakeTask, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.5, 0.9), (0.6, 0.8), (0.6, 0.7), (0.4, 0.1), (0.6, 0.7), (0.9, 0.9)])
    monkeypatch.setattr(loop, "score", lambda *_: loop.Score(*reversed(next(scores))))
    net = tiny()
    course = train(net, make_task(net, strategy="full", epochs=9, patience=2), Silent())
    assert len(course.history) == 5, "an equally right epoch with a lower loss is a better one"
    assert course.best_epoch == 3, "the second and third are equally right, the third has the lower loss"
    assert all(torch.equal(course.best[name], tensor) for name, tensor in state(net).items())


def test_patience_waits_for_the_last_phase(
    make_task: MakeTask, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "score", lambda *_: loop.Score(1.0, 0.5))
    net = tiny()
    course = train(net, make_task(net, strategy="gradual", epochs=8, patience=1), Silent())
    assert [entry["phase"] for entry in course.history][-1] == "full"


def test_the_average_is_what_is_saved(make_task: MakeTask, tiny: Any) -> None:
    plain, averaged = tiny(), tiny()
    train(plain, make_task(plain, "plain", strategy="full"), Silent())
    course = train(averaged, make_task(averaged, "averaged", strategy="full", average=0.9), Silent())
    assert course.average is not None
    assert not same(plain, averaged)
    assert all(torch.equal(course.best[name], tensor) for name, tensor in state(averaged).items())


def test_average_follows_from_the_first_step_on(tiny: Any) -> None:
    net, average = tiny(), tiny()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    names = frozenset(net.state_dict())
    loop.follow(average, net, names, 0.999, step=1)
    moved = (average.head[1].bias - tiny().head[1].bias).mean().item()
    assert moved == pytest.approx(1 - 2 / 11), "not by 0.001: the beginning would linger"


def test_divergence_names_epoch_step_rate_and_a_way_out(make_task: MakeTask, tiny: Any) -> None:
    net = tiny()
    with torch.no_grad():
        net.head[1].weight.fill_(float("nan"))
    message = r"epoch 1, step 1 of 5: the loss is no finite number at a learning rate of 0\.01 \(peak 0\.02\)"
    with pytest.raises(loop.Diverged, match=message) as caught:
        train(net, make_task(net, strategy="full"), Silent())
    assert "finetune.learning_rate" in caught.value.hint
    assert caught.value.course.best_epoch == 0


def test_divergence_leaves_the_best_epoch_in_the_network(make_task: MakeTask, tiny: Any) -> None:
    net, seen = tiny(), []

    def poison(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
        seen.append(len(made))
        return made * float("nan") if module.training and seen.count(7) > 12 else made

    task = make_task(net, strategy="full", average=0.9)
    net.head.register_forward_hook(poison)
    with pytest.raises(loop.Diverged, match=r"epoch 3, step 3 of 5") as caught:
        train(net, task, Silent())
    course = caught.value.course
    assert course.best_epoch in (1, 2)
    assert all(torch.equal(course.best[name], tensor) for name, tensor in state(net).items())


def test_out_of_memory_says_what_to_lower(make_task: MakeTask, tiny: Any) -> None:
    net = tiny()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    net.head.register_forward_hook(full)
    with pytest.raises(StageError, match="memory") as caught:
        train(net, make_task(net, strategy="full"), Silent())
    assert "finetune.batch" in caught.value.hint


@pytest.mark.parametrize("strategy", ["full", "feature-extractor"])
def test_accumulated_batches_learn_what_one_large_batch_does(
    make_task: MakeTask, tiny: Any, strategy: str
) -> None:
    def learned(folder: str, batch: int, accumulate: int) -> tuple[dict[str, torch.Tensor], Any]:
        net = tiny()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum, module.forward = 0.0, lambda given: given  # Without it, as said.
        settings = {"strategy": strategy, "batch": batch, "accumulate": accumulate, "optimizer": "sgd"}
        return state(net), train(net, make_task(net, folder, **settings), Silent())

    whole, course = learned("whole", 14, 1)
    parts, other = learned("parts", 7, 2)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)
    assert course.step == other.step == 4 * 3, "31 images: the last group holds three"
    assert [entry["loss"] for entry in other.history] == pytest.approx(
        [entry["loss"] for entry in course.history], rel=1e-4
    )


def history(course: Any, *keys: str) -> list[list[Any]]:
    return [[entry[key] for entry in course.history] for key in keys]


@pytest.mark.forks
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "full", "average": 0.9, "patience": 3},
        {"strategy": "gradual", "epochs": 5, "accumulate": 2, "batch": 5},
    ],
    ids=lambda s: s["strategy"],
)
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_does(
    make_task: MakeTask, tiny: Any, settings: dict[str, Any], processes: int
) -> None:
    settings = {"optimizer": "sgd", "learning_rate": 0.01, **settings}
    alone, shown = tiny(), Recorder()
    expected = train(alone, make_task(alone, "alone", **settings), shown)

    def work() -> tuple[Any, ...]:
        net, said = tiny(), Recorder()
        with torch.no_grad():
            net.head[1].weight += ranks.rank()  # The first one's weights count.
        course = train(net, make_task(net, "shared", **settings), said if ranks.rank() == 0 else Silent())
        tensors = {name: tensor.numpy() for name, tensor in state(net).items()}
        return (
            tensors,
            history(course, "loss", "val_loss"),
            history(course, "train_top1", "val_top1"),
            said.shown,
        )

    found = several(processes, work)
    for tensors, losses, shares, _ in found:
        for name, tensor in state(alone).items():
            torch.testing.assert_close(torch.from_numpy(tensors[name]), tensor, atol=2e-5, rtol=1e-4)
        assert losses[0] == pytest.approx(history(expected, "loss")[0], rel=1e-4)
        assert losses[1] == pytest.approx(history(expected, "val_loss")[0], rel=1e-4)
        assert shares == history(expected, "train_top1", "val_top1"), "counted exactly"
    assert found[0][3] == shown.shown, "images of all processes move the bar"


@pytest.mark.forks
def test_what_takes_no_part_in_the_loss_waits_for_nobody_and_stays(make_task: MakeTask, tiny: Any) -> None:
    options = {
        "strategy": "full",
        "epochs": 1,
        "weight_decay": 0.5,
        "optimizer": "sgd",
        "learning_rate": 0.01,
    }

    def work(folder: str) -> dict[str, Any]:
        net = tiny()
        # Registered in a group that learns, and never called.
        net.first.spare = nn.Linear(2, 2, bias=False)
        nn.init.ones_(net.first.spare.weight)
        net.first.forward = lambda images: body(net, images)
        train(net, make_task(net, folder, **options), Silent())
        return {name: tensor.numpy() for name, tensor in state(net).items()}

    alone, shared = work("alone"), several(2, lambda: work("shared"))
    for found in [alone, *shared]:
        assert (found["first.spare.weight"] == 1).all(), "weights that nothing reaches do not decay either"
    for name, tensor in alone.items():
        torch.testing.assert_close(
            torch.from_numpy(shared[0][name]), torch.from_numpy(tensor), atol=1e-3, rtol=1e-3
        )


def body(net: Any, images: torch.Tensor) -> torch.Tensor:
    """What `first` computes without its spare part."""
    for name, part in net.first.named_children():
        images = part(images) if name != "spare" else images
    return images


@pytest.mark.forks
@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_an_interrupted_training_goes_on_with_other_processes(
    make_task: MakeTask, tiny: Any, before: int, after: int
) -> None:
    settings = {"strategy": "gradual", "optimizer": "sgd", "learning_rate": 0.01, "epochs": 6, "average": 0.9}
    alone = tiny()
    train(alone, make_task(alone, "alone", **settings), Silent())

    def cut() -> bool:
        net = tiny()
        with pytest.raises(KeyboardInterrupt):
            train(net, make_task(net, "shared", **settings), Recorder(stop="epoch 5/"))
        return True

    def go_on() -> tuple[dict[str, Any], list[str]]:
        net, said = tiny(), Recorder()
        train(net, make_task(net, "shared", **settings), said)
        return {name: tensor.numpy() for name, tensor in state(net).items()}, said.lines

    assert several(before, cut) if before > 1 else cut()
    tensors, lines = (several(after, go_on) if after > 1 else [go_on()])[0]
    assert lines[0] == "going on after epoch 4/6"
    for name, tensor in state(alone).items():
        torch.testing.assert_close(torch.from_numpy(tensors[name]), tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.forks
def test_a_loss_that_is_no_number_in_one_process_stops_all(make_task: MakeTask, tiny: Any) -> None:
    def work() -> str:
        net = tiny()
        net.head.register_forward_hook(
            lambda module, given, made: made * float("nan") if module.training and ranks.rank() else made
        )
        with pytest.raises(loop.Diverged) as caught:
            train(net, make_task(net, "shared", strategy="full"), Silent())
        return str(caught.value)

    first, second = several(2, work)
    assert first == second
    assert "epoch 1, step 1 of 5" in first


def test_a_long_training_asks_for_torch_compile_and_remembers(
    make_task: MakeTask, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "SECONDS_PER_MODULE", {"cpu": 0.0})
    monkeypatch.setattr(compiling, "LEAST_GAIN", -1e9)
    made: list[nn.Module] = []

    def standin(net: nn.Module) -> Any:
        made.append(net)
        return net.forward

    monkeypatch.setattr(compiling, "_torch_compile", standin)
    settings = {"strategy": "full", "epochs": 8}
    plain, net, said = tiny(), tiny(), Recorder()
    train(plain, make_task(plain, "plain", deterministic=True, **settings), Silent())
    task = make_task(net, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(net, task, Recorder(stop="epoch 7/"))
    again = tiny()
    course = train(again, task, said)
    assert same(again, plain), "compiled or not"
    assert made == [net, again], "what was decided holds after an interrupt"
    assert course.compiled["full"].used
    assert sum(line.startswith("torch.compile: used") for line in said.lines) == 1


def test_too_few_steps_and_features_are_not_compiled(make_task: MakeTask, tiny: Any) -> None:
    for settings, why in [
        ({"strategy": "feature-extractor"}, "features"),
        ({"strategy": "full", "deterministic": True}, "deterministic"),
        ({"strategy": "full", "epochs": 1}, "too few steps"),
    ]:
        net = tiny()
        course = train(net, make_task(net, why, **settings), Silent())
        assert [(verdict.used, verdict.why) for verdict in course.compiled.values()] == [
            (False, f"not tried: {why}")
        ]


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_and_resumes(make_task: MakeTask, tiny: Any, fast: torch.dtype) -> None:
    def task(net: Any, folder: str) -> Task:
        mixed = Accelerator(torch.device("cpu"), fast, torch.channels_last)
        made = make_task(net, folder, strategy="full", epochs=6, learning_rate=0.05)
        return dataclasses.replace(made, accelerator=mixed)

    straight, cut, resumed = tiny(), tiny(), tiny()
    course = train(straight, task(straight, "whole"), Silent())
    assert course.scaler.is_enabled() == (fast is torch.float16)
    assert course.history[-1]["loss"] < course.history[0]["loss"]
    assert all(tensor.dtype is torch.float32 for tensor in straight.parameters())
    with pytest.raises(KeyboardInterrupt):
        train(cut, task(cut, "cut"), Recorder(stop="epoch 4/"))
    train(resumed, task(resumed, "cut"), Silent())
    assert same(straight, resumed)


def test_a_batch_of_one_is_too_few_for_batchnorm(make_task: MakeTask) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.stem = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())
    net.head = nn.Linear(3, 3)
    net.forward = lambda batch: net.head(net.stem(batch))
    with pytest.raises(ConfigError, match=r"finetune\.batch: 1"):
        train(net, make_task(net, strategy="full", batch=1), Silent())


def test_clipping_bounds_a_step(make_task: MakeTask, tiny: Any) -> None:
    moved = {}
    for clip in (0.0, 1e-4):
        net, before = tiny(), state(tiny())
        settings = {"strategy": "full", "optimizer": "sgd", "epochs": 1, "weight_decay": 0.0, "clip": clip}
        train(net, make_task(net, f"clip{clip}", **settings), Silent())
        moved[clip] = sum(float((p.detach() - before[n]).norm()) for n, p in net.named_parameters())
    assert moved[1e-4] < moved[0.0] / 10


def test_who_looks_on_may_end_a_training_and_sees_all_of_it_when_it_goes_on(
    make_task: MakeTask, tiny: Any
) -> None:
    class Enough(Exception):
        pass

    def stop(history: list[dict[str, Any]]) -> None:
        if len(history) == 2:
            raise Enough

    net = tiny()
    with pytest.raises(Enough):
        train(net, dataclasses.replace(make_task(net, strategy="full"), watch=stop), Silent())
    seen: list[list[int]] = []
    again = tiny()
    watching = dataclasses.replace(
        make_task(again, strategy="full"), watch=lambda h: seen.append([entry["epoch"] for entry in h])
    )
    train(again, watching, Silent())
    assert seen == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    straight = tiny()
    train(straight, make_task(straight, folder="straight", strategy="full"), Silent())
    assert same(again, straight)
