"""Weights: every form that people have, no code from a file, and differences that can be read."""

import pickle
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from edgetune.errors import ArtifactError, ConfigError, MissingTool
from edgetune.models import build_model, model_row
from edgetune.models import weights as reading
from edgetune.models.rows import CIFAR10
from edgetune.models.weights import read_state

NAME = "mobilenet_v2_035_cifar10"
State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return build_model(NAME, 4, weights="none", seed=7).state_dict()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("never"),))


FORMS = {
    "plain.pth": lambda s: s,
    "plain.pt": lambda s: s,
    "nested.pth": lambda s: {"epoch": 3, "state_dict": s},
    "deeper.pth": lambda s: {"model": {"state_dict": s}},
    "parallel.pth": lambda s: {"model": {f"module.{n}": t for n, t in s.items()}},
    "compiled.pth": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "without_counters.pth": lambda s: {n: t for n, t in s.items() if "num_batches" not in n},
    "half.pth": lambda s: {n: t.half() for n, t in s.items() if "num_batches" not in n},
}


@pytest.mark.parametrize("file", FORMS)
def test_every_usual_form_is_read(file: str, state: State, tmp_path: Path) -> None:
    torch.save(FORMS[file](state), tmp_path / file)
    net = build_model(NAME, 4, weights=tmp_path / file, seed=1)
    got = net.state_dict()
    assert all(torch.allclose(got[n], t, atol=1e-3) for n, t in state.items() if "num_batches" not in n)
    assert all(tensor.dtype != torch.float16 for tensor in got.values())


def test_safetensors_are_read(state: State, tmp_path: Path) -> None:
    save_file(state, str(tmp_path / "a.safetensors"))
    assert read_state(tmp_path / "a.safetensors").keys() == state.keys()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ArtifactError, match="refused: it holds more than tensors"):
        build_model(NAME, 4, weights=path)
    assert not (tmp_path / "never").exists()


def test_a_bare_pickle_is_refused_and_does_not_go_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError):
        read_state(tmp_path / "bomb.pt")
    assert not (tmp_path / "never").exists()


def test_a_whole_pickled_module_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ArtifactError, match="refused") as caught:
        read_state(tmp_path / "module.pth")
    assert "state_dict" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not weights at all", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_garbage_is_an_artifact_error(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.name):
        read_state(path)


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_cut_off_file_is_an_artifact_error(state: State, suffix: str, cut: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, str(path))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(ArtifactError, match=path.name):
        read_state(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(3)])
def test_a_file_without_named_weights_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="no weights by name"):
        read_state(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(state: State, value: float, tmp_path: Path) -> None:
    state["features.2.conv.0.0.weight"].view(-1)[5] = value
    save_file(state, str(tmp_path / "a.safetensors"))
    with pytest.raises(ArtifactError, match=r"features\.2\.conv\.0\.0\.weight holds NaN"):
        build_model(NAME, 4, weights=tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("file", "message"),
    [("a.onnx", "are read from"), ("imagenet", "are read from"), ("a.pth", "no such file")],
)
def test_what_is_no_weights_file_is_named(file: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(NAME, 4, weights=tmp_path / file)


def test_differences_are_a_short_table(state: State, tmp_path: Path) -> None:
    renamed = {f"old.{n}" if n.startswith("features.18") else n: t for n, t in state.items()}
    renamed["features.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    save_file(renamed, str(tmp_path / "a.safetensors"))
    net = build_model(NAME, 4, weights="none")
    before = net.features[5].conv[0][0].weight.clone()
    with pytest.raises(ArtifactError) as caught:
        reading.fill(net, read_state(tmp_path / "a.safetensors"), "classifier", True, "a.safetensors")
    lines = caught.value.message.splitlines()
    assert "254 of 260 tensors match" in lines[0]
    assert "  missing in the file: features.18.0.weight [1280, 112, 1, 1]" in lines
    assert "  unknown to the network: old.features.18.0.weight [1280, 112, 1, 1]" in lines
    assert (
        "  another shape: features.0.0.weight [8, 3, 3, 3] in the file, [16, 3, 3, 3] in the network" in lines
    )
    assert len(lines) < 12
    assert torch.equal(net.features[5].conv[0][0].weight, before)


def test_weights_of_another_row_are_recognised(tmp_path: Path) -> None:
    save_file(build_model("squeezenet1_1", 9, weights="none").state_dict(), str(tmp_path / "a.safetensors"))
    with pytest.raises(ArtifactError, match="0 of 260 tensors match") as caught:
        build_model(NAME, 9, weights=tmp_path / "a.safetensors")
    assert caught.value.hint == "they fit 'squeezenet1_1' better (50 of 50 tensors match)"


def test_default_weights_without_a_network_say_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(
        MissingTool, match=r"MobileNet_V2_Weights\.IMAGENET1K_V1 .* no route to host"
    ) as caught:
        build_model("mobilenet_v2", 4)
    assert str(tmp_path) in caught.value.hint
    assert ".pth" in caught.value.hint


def test_default_weights_come_from_the_cache_and_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url
    cached = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    net = torchvision.models.mobilenet_v2()
    torch.save(net.state_dict(), cached)
    built = build_model("mobilenet_v2", 4)
    assert torch.equal(built.features[4].conv[0][0].weight, net.features[4].conv[0][0].weight)
    cached.write_bytes(b"cut off")
    with pytest.raises(ArtifactError) as caught:
        build_model("mobilenet_v2", 4)
    assert "delete it" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tensors"), [("mobilenet_v2", 262), ("squeezenet1_0", 52)])
def test_real_weights_are_read_with_their_head(name: str, tensors: int, imagenet: Path) -> None:
    path = imagenet / f"{name}-imagenet.pth"
    said: list[str] = []
    net = build_model(name, 1000, weights=path, say=said.append)
    assert "taken over" in said[0]
    assert sum("num_batches" not in n for n in net.state_dict()) == tensors
    with pytest.raises(ArtifactError) as caught:
        build_model("resnet18", 1000, weights=path)
    assert repr(name) in caught.value.hint


def test_the_shipped_weights_fit_their_row() -> None:
    said: list[str] = []
    build_model(NAME, 10, say=said.append)
    assert "head (10 classes) is left out" in said[0]
    assert CIFAR10.stat().st_size < 2e6
    assert CIFAR10.with_suffix(".json").is_file()
    assert model_row(NAME).classes == 10
