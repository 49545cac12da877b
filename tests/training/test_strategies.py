import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgetune.errors import ConfigError
from edgetune.recipe import FinetuneSection
from edgetune.training.strategies import (
    LEARNING_RATES,
    STRATEGIES,
    Layout,
    Phase,
    decay,
    learning_names,
    parameter_groups,
    peak_rate,
    scheduled,
    set_phase,
)

LAYOUT = Layout("head", (("stem",), ("first",), ("second",)))


def section(**values: Any) -> FinetuneSection:
    return FinetuneSection.model_validate(values)


@given(st.sampled_from(sorted(STRATEGIES)), st.integers(1, 40), st.integers(1, 12), st.floats(0.05, 1.0))
def test_phases_fill_the_epochs_and_the_head_learns_most(
    name: str, epochs: int, groups: int, decay: float
) -> None:
    settings = section(strategy=name, epochs=epochs, stages=min(2, groups), group_decay=decay)
    phases = STRATEGIES[name](settings, groups)
    assert sum(phase.epochs for phase in phases) == epochs
    for phase in phases:
        assert phase.epochs >= 1
        assert len(phase.rates) == groups + 1
        assert phase.rates[-1] == 1
        assert list(phase.rates) == sorted(phase.rates), "a deeper part never learns faster"


def test_gradual_opens_group_after_group() -> None:
    phases = STRATEGIES["gradual"](section(strategy="gradual", epochs=5, group_decay=0.5), 3)
    assert [(phase.name, phase.epochs, phase.rates) for phase in phases] == [
        ("head", 1, (0, 0, 0, 1)),
        ("last 1", 1, (0, 0, 0.5, 1)),
        ("last 2", 1, (0, 0.25, 0.5, 1)),
        ("full", 2, (0.125, 0.25, 0.5, 1)),
    ]


def test_gradual_with_few_epochs_opens_several_groups_at_once() -> None:
    phases = STRATEGIES["gradual"](section(strategy="gradual", epochs=3), 8)
    assert [sum(rate > 0 for rate in phase.rates) for phase in phases] == [1, 5, 9]


def test_partial_refuses_more_stages_than_groups() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.stages: 4, but the network has 3 groups"):
        STRATEGIES["partial"](section(strategy="partial", stages=4), 3)


def test_frozen_parts_are_in_eval_mode_and_take_no_gradient(tiny: Any) -> None:
    net = tiny()
    set_phase(net, LAYOUT, Phase("partial", 1, (0, 0, 1, 1)))
    assert [net.stem[1].training, net.first[1].training, net.second[1].training] == [False, False, True]
    assert net.head[0].training, "the head's dropout"
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} == {"second", "head"}
    assert {n.split(".")[0] for n, p in net.named_parameters() if not p.requires_grad} == {"stem", "first"}


def test_where_only_the_head_learns_all_else_is_in_eval_mode(tiny: Any) -> None:
    net = tiny()
    net.between = nn.Dropout()  # in no group
    set_phase(net, LAYOUT, Phase("head", 1, (0, 0, 0, 1)))
    assert {name for name, module in net.named_modules() if module.training} == {"head", "head.0", "head.1"}
    set_phase(net, LAYOUT, Phase("partial", 1, (0, 0, 1, 1)))
    assert net.between.training


def test_set_phase_thaws_what_an_earlier_phase_froze(tiny: Any) -> None:
    net = tiny()
    set_phase(net, LAYOUT, Phase("head", 1, (0, 0, 0, 1)))
    set_phase(net, LAYOUT, Phase("full", 1, (1, 1, 1, 1)))
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_names_that_only_share_a_beginning_are_other_parts() -> None:
    layout = Layout("features.10", (("features.1",), ("features.2", "token")))
    assert layout.part("features.1.weight") == 0
    assert layout.part("features.10.weight") == 2
    assert layout.part("token") == 1
    assert layout.part("features") == -1


def test_an_empty_name_is_everything_outside_the_head() -> None:
    layout = Layout("head", (("",),))
    assert layout.part("anything.weight") == 0
    assert layout.part("head.weight") == 1
    assert Layout("", ()).part("anything.weight") == 0


def test_biases_and_norms_are_not_decayed(tiny: Any) -> None:
    net = tiny()
    phases = STRATEGIES["partial"](section(strategy="partial", stages=1), 3)
    groups = parameter_groups(net, LAYOUT, phases, 0.1)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    learned = {n: decay[id(p)] for n, p in net.named_parameters() if id(p) in decay}
    assert learned == {
        "second.0.weight": 0.1,
        "second.0.bias": 0.0,
        "second.1.weight": 0.0,
        "second.1.bias": 0.0,
        "head.1.weight": 0.1,
        "head.1.bias": 0.0,
    }
    assert "second.1.running_mean" in learning_names(net, LAYOUT, phases)


@given(st.integers(1, 500), st.floats(0, 1))
def test_schedule_rises_to_the_peak_then_falls(steps: int, warmup: float) -> None:
    rates = [scheduled(step, steps, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_every_strategy_has_a_default_rate_and_a_set_one_wins() -> None:
    assert set(LEARNING_RATES) == {(o, s) for o in ("adamw", "sgd") for s in STRATEGIES}
    assert all(0 < rate < 1 and math.isfinite(rate) for rate in LEARNING_RATES.values())
    normalised, bare = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(2, 2))
    assert peak_rate(section(learning_rate=0.5), bare) == 0.5
    assert peak_rate(section(strategy="full"), normalised) == LEARNING_RATES["adamw", "full"]
    assert peak_rate(section(), bare) == peak_rate(section(), normalised), "a head alone"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("strategy", ["partial", "full", "gradual"])
def test_a_network_without_normalisation_learns_more_slowly(optimizer: str, strategy: str) -> None:
    normalised, bare = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.Sequential(nn.Linear(2, 2))
    chosen = section(optimizer=optimizer, strategy=strategy)
    assert peak_rate(chosen, bare) == pytest.approx(peak_rate(chosen, normalised) / 10)


def test_group_with_bare_parameters() -> None:
    class WithToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.head = nn.Linear(3, 2)

    net = WithToken()
    set_phase(net, Layout("head", (("token",),)), Phase("head", 1, (0, 1)))
    assert not net.token.requires_grad


@pytest.mark.parametrize(("optimizer", "expected"), [("adamw", 0.01), ("sgd", 1e-4)])
def test_weight_decay_has_a_default_per_optimizer(optimizer: str, expected: float) -> None:
    assert decay(FinetuneSection(optimizer=optimizer)) == expected  # type: ignore[arg-type]
    assert decay(FinetuneSection(optimizer=optimizer, weight_decay=0.0)) == 0.0  # type: ignore[arg-type]
