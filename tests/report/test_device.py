"""The lines for the device fit its TensorRT: golden lines per version, and every profile gives some."""

import pytest

from edgetune.artifact import TensorSpec
from edgetune.profile import load_profile, load_target, names
from edgetune.report.device import left_to_do

STATIC = (TensorSpec(name="input", dtype="float32", shape=(1, 3, 224, 224)),)
DYNAMIC = (TensorSpec(name="input", dtype="float32", shape=("N", 3, 224, 224)),)
T = "/usr/src/tensorrt/bin/trtexec"


def commands(spec: str, inputs: tuple[TensorSpec, ...] = STATIC) -> list[str]:
    return [line for line in left_to_do(load_target(spec), inputs) if line.startswith((T, "sudo"))]


@pytest.mark.parametrize(
    ("jetpack", "int8", "fp16", "baseline", "ending"),
    [
        ("5.1", "--int8 --fp16", "--fp16", "fp32.onnx", "--buildOnly"),
        ("6.0", "--int8 --fp16", "--fp16", "fp32.onnx", "--skipInference"),
        ("6.2", "--int8 --fp16", "--fp16", "fp32.onnx", "--skipInference"),
        ("7.2", "--stronglyTyped", "--stronglyTyped", "fp16.onnx", "--skipInference"),
    ],
)
def test_golden_lines_per_jetpack(jetpack: str, int8: str, fp16: str, baseline: str, ending: str) -> None:
    found = commands(f"jetson-agx-orin-64gb:MAXN@{jetpack}")
    timing = "--warmUp=2000 --duration=30 --iterations=1000 --percentile=50,90,95,99"
    rest = "--useCudaGraph --useSpinWait --noDataTransfers"
    assert found == [
        "sudo nvpmodel -m 0 && sudo jetson_clocks",
        f"{T} --onnx=int8.onnx --saveEngine=int8.plan {int8} {ending} --memPoolSize=workspace:512",
        f"{T} --onnx={baseline} --saveEngine=fp16.plan {fp16} {ending} --memPoolSize=workspace:512",
        f"{T} --loadEngine=int8.plan {timing} {rest}",
        f"{T} --loadEngine=fp16.plan {timing} {rest}",
    ]


def test_the_mode_comes_before_the_build() -> None:
    lines = left_to_do(load_target("jetson-orin-nano-8gb:7W"), STATIC)
    mode = next(i for i, line in enumerate(lines) if "nvpmodel -m ID" in line)
    assert mode < next(i for i, line in enumerate(lines) if "--onnx" in line)
    assert any("/etc/nvpmodel.conf" in line for line in lines), (
        "a mode whose number is not known is looked up"
    )


def test_a_free_batch_needs_its_shapes() -> None:
    build = commands("jetson-orin-nano-8gb", DYNAMIC)[1]
    for end in ("min", "opt", "max"):
        assert f"--{end}Shapes=input:1x3x224x224" in build


@pytest.mark.parametrize(("name", "workspace"), [("jetson-nano-4gb", 1024), ("jetson-tx2", 2048)])
def test_golden_lines_without_int8(name: str, workspace: int) -> None:
    assert commands(name) == [
        "sudo nvpmodel -m 0 && sudo jetson_clocks",
        f"{T} --onnx=fp16.onnx --saveEngine=fp16.plan --fp16 --explicitBatch --workspace={workspace} --buildOnly",
        f"{T} --loadEngine=fp16.plan --warmUp=2000 --duration=30 --iterations=1000 --useCudaGraph --useSpinWait "
        "--exportTimes=fp16.times.json",
    ]
    said = " ".join(left_to_do(load_target(name), STATIC))
    assert "INT8 is out of reach there" in said
    assert "int8.onnx" not in said
    assert commands(name, DYNAMIC)[1].endswith("--maxShapes=input:1x3x224x224")


@pytest.mark.parametrize("name", names())
def test_every_profile(name: str) -> None:
    profile = load_profile(name)
    for jetpack in profile.jetpacks:
        assert len(commands(f"{name}@{jetpack}")) == (3 if load_target(f"{name}@{jetpack}").no_int8 else 5)
    assert (profile.kind == "host") == (left_to_do(load_target(name), STATIC) == [])


def test_a_desktop_locks_its_gpus_clock_and_knows_no_nvpmodel() -> None:
    said = "\n".join(left_to_do(load_target("desktop-rtx-3060@10.3"), STATIC))
    assert "sudo nvidia-smi --lock-gpu-clocks=1777" in said
    assert "GeForce RTX 3060 12 GB (TensorRT 10.3.0)" in said
    assert "nvpmodel" not in said
    assert "JetPack" not in said
