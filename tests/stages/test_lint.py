"""The verb: files in and out, exit codes, what is shown."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgetune import cli
from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import load_target, names
from edgetune.quant.lint_view import reader_of
from edgetune.stages.lint import lint

ORIN = load_target("jetson-agx-orin-64gb@6.2")
PLAIN = {"NO_COLOR": "1", "COLUMNS": "120", "TERM": "dumb"}


def quantized(bias: bool = False, scale: float = 0.05) -> onnx.ModelProto:
    """One convolution with Q/DQ, its bias as float or as int32."""
    noise = np.random.default_rng(0)
    values = {
        "s": np.array(scale, np.float32),
        "z": np.array(0, np.int8),
        "w": noise.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
        "ws": np.full(16, 1e-3, np.float32),
        "wz": np.zeros(16, np.int8),
        "b": np.arange(16, dtype=np.int32) if bias else np.arange(16, dtype=np.float32),
        "bs": np.full(16, 1e-3, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weight", axis=0),
    ]
    if bias:
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="bias", axis=0))
    nodes.append(helper.make_node("Conv", ["d", "wd", "bd" if bias else "b"], ["y"], name="conv"))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 6, 6])],
        [numpy_helper.from_array(v, k) for k, v in values.items() if k in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(quantized(), tmp_path / "good.onnx")
    onnx.save(quantized(bias=True), tmp_path / "bias.onnx")
    onnx.save(quantized(scale=0.0), tmp_path / "zero.onnx")
    plain = quantized()
    plain.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(plain, tmp_path / "dynamic.onnx")
    return tmp_path


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner(env=PLAIN).invoke(cli.app, ["lint", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.stdout


@pytest.mark.parametrize(
    ("file", "more", "code"),
    [
        ("good.onnx", [], 0),
        ("bias.onnx", [], 7),
        ("dynamic.onnx", [], 0),
        ("dynamic.onnx", ["--strict"], 7),
        ("good.onnx", ["--dla"], 7),
    ],
)
def test_exit_codes(files: Path, file: str, more: list[str], code: int) -> None:
    found, shown = invoke(files / file, "--profile", "jetson-agx-orin-64gb@6.2", *more)
    assert found == code, shown
    assert file in shown


def test_what_is_shown_names_all_there_is_to_know(files: Path) -> None:
    _, shown = invoke(files / "bias.onnx", "--profile", "jetson-agx-orin-64gb@6.2")
    for word in ("1 error", "int32-bias", "bias", "conv", "onnxruntime issues 17738", "->", "--fix: 1 of 1"):
        assert word in shown, word
    assert "nothing found" in invoke(files / "good.onnx", "--profile", "jetson-agx-orin-64gb@6.2")[1]


def test_many_places_are_counted_and_not_listed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", [f"t{i}"], [f"t{i + 1}"], name=f"det{i}") for i in range(9)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t9")]
    model = helper.make_model(
        helper.make_graph(nodes, "net", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, tmp_path / "many.onnx")
    _, shown = invoke(tmp_path / "many.onnx", "--profile", "jetson-agx-orin-64gb@6.2")
    assert "unsupported-op (9 places)" in shown
    assert "and 6 more" in shown
    assert "det5" not in shown


def test_json_holds_everything(files: Path) -> None:
    code, shown = invoke(files / "bias.onnx", "--profile", "jetson-agx-orin-64gb@6.2", "--json")
    told = json.loads(shown)
    assert code == 7
    assert (told["errors"], told["warnings"], told["written"]) == (1, 0, None)
    (finding,) = [item for item in told["findings"] if item["severity"] == "error"]
    assert set(finding) == {"rule", "severity", "node", "reason", "source", "remedy", "fixable"}
    assert (finding["rule"], finding["node"], finding["fixable"]) == ("int32-bias", "bias", True)


def test_repairing_writes_a_new_file_and_judges_that(files: Path) -> None:
    before = (files / "bias.onnx").read_bytes()
    code, shown = invoke(
        files / "bias.onnx",
        "--profile",
        "jetson-agx-orin-64gb@6.2",
        "--fix",
        "-o",
        files / "new" / "out.onnx",
    )
    assert code == 0
    assert "fixed int32-bias: bias" in shown
    assert (files / "bias.onnx").read_bytes() == before
    again = lint(files / "new" / "out.onnx", ORIN)
    assert not again.count("error")
    told = json.loads(
        invoke(
            *(files / "zero.onnx", "--profile", "jetson-agx-orin-64gb@6.2", "--fix", "--json"),
            *("-o", files / "same.onnx"),
        )[1]
    )
    assert told["errors"] == 1
    assert told["fixed"] == []
    assert onnx.load(files / "same.onnx") == onnx.load(files / "zero.onnx")


def test_repairing_in_place_is_asked_for_by_name(files: Path) -> None:
    made = lint(files / "bias.onnx", ORIN, fix=True, into=files / "bias.onnx")
    assert made.fixed
    assert not lint(files / "bias.onnx", ORIN).count("error")
    for fix, into in ((True, None), (False, files / "out.onnx")):
        with pytest.raises(ConfigError, match="new file"):
            lint(files / "good.onnx", ORIN, fix=fix, into=into)


def test_weights_beside_the_file_are_read_and_written(files: Path) -> None:
    model = quantized(bias=True)
    onnx.save_model(
        model, files / "far.onnx", save_as_external_data=True, location="far.data", size_threshold=0
    )
    verdict = lint(files / "far.onnx", ORIN)
    assert {item.rule for item in verdict.findings} == {"int32-bias", "file-size"}
    lint(files / "far.onnx", ORIN, fix=True, into=files / "near" / "out.onnx")
    assert (files / "near" / "out.onnx.data").is_file()
    assert not lint(files / "near" / "out.onnx", ORIN).count("error")
    (files / "far.data").unlink()
    with pytest.raises(ArtifactError) as caught:
        lint(files / "far.onnx", ORIN)
    assert "beside" in caught.value.hint


def test_a_file_that_no_parser_reads_is_told_by_its_size(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.stages.lint.LARGEST_BYTES", 100)
    (finding,) = lint(files / "good.onnx", ORIN).findings
    assert (finding.rule, finding.severity) == ("file-size", "error")


def test_bad_files_are_answered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        lint(tmp_path / "none.onnx", ORIN)
    for content in (b"", b"not a network at all, but long enough to be one"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"bad\.onnx"):
            lint(tmp_path / "bad.onnx", ORIN)
    with pytest.raises(ArtifactError, match="not an artifact"):
        lint(tmp_path, ORIN)


def test_every_profile_has_a_reader() -> None:
    targets = [load_target(name) for name in names()]
    assert len(targets) >= 3
    for target in targets:
        reader = reader_of(target)
        assert reader.opset_max >= target.runtime.opset
        assert bool(reader.version) != target.is_host
