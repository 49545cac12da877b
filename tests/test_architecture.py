"""What keeps the house in order: who may import whom, how long a file may be, what --help may load."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgetune"
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "matplotlib", "scipy", "sklearn")

# From the ground up; a module imports only from floors below its own, or from its own folder.
FLOORS = (
    ("errors", "progress", "terminal", "counting"),
    ("artifact",),
    ("store", "yaml", "machine", "contradictions"),
    ("learning",),
    ("recipe",),
    ("hardware",),
    ("profile",),
    ("device",),
    ("data", "models", "engines"),
    ("latency",),
    ("training", "quant"),
    ("estimates",),
    ("report", "stages"),
    ("learned",),
    ("pipeline",),
    ("steps", "show", "show_estimate", "show_profiles", "tuning"),
    ("away", "benching"),
    ("lookup",),
    ("devices", "estimating", "searches"),
    ("single",),
    ("cli",),
    ("__main__",),
)


def modules() -> list[Path]:
    found = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)
    assert len(found) > 20
    return found


def house(path: Path) -> str:
    """The folder of the package, or the module at its top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if name in names)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "edgetune"
                else [node.module]
            )
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("edgetune.") and name != "edgetune.__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = house(path)
    for name in imported(path):
        there = name.split(".")[1]
        assert there == here or floor(there) < floor(here), f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", ["stages", "engines"])
def test_stages_and_engines_do_not_import_their_own_kind(folder: str) -> None:
    found = sorted(p for p in (PACKAGE / folder).glob("*.py") if p.name != "__init__.py")
    assert found
    for path in found:
        assert not [name for name in imported(path) if name.startswith(f"edgetune.{folder}.")], path


def test_files_stay_short() -> None:
    for path in modules():
        assert len(path.read_text().splitlines()) <= 400, path


def test_every_module_says_what_it_is() -> None:
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from edgetune import cli
try:
    cli.app(["--help"])
except SystemExit:
    pass
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_names_a_machine_or_a_registry() -> None:
    # Written in pieces, so that this file does not find itself.
    forbidden = ["/wor" + "k/", "py" + "pi.org", "python" + "hosted", "/ro" + "ot/"]
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".j2", ""}
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in done.stdout.splitlines() if Path(name).suffix in suffixes]
    assert len(files) > 30
    for path in files:
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in forbidden if word in text], path


def test_the_public_names_are_complete_and_sorted() -> None:
    import edgetune

    assert edgetune.__all__ == sorted(edgetune.__all__)
    assert set(edgetune._HOME) == set(edgetune.__all__)
    for name in edgetune.__all__:
        assert getattr(edgetune, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = edgetune.no_such_name  # type: ignore[attr-defined]


def test_nothing_is_unpickled() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"joblib", "dill", "shelve"} & set(names), path
                assert getattr(node, "module", "") != "pickle", path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                assert node.attr in ("UnpicklingError", "PROTO"), f"{path}: only to recognise and refuse"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "np.load",
                "numpy.load",
            ):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True" or given.get("allow_pickle") == "False", path
            if isinstance(node, ast.Call):
                assert not any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords), (
                    path
                )
                assert ast.unparse(node.func) not in ("os.system", "eval", "exec"), path


def test_benchmarks_import_what_there_is() -> None:
    found = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert len(found) > 20
    for path in found:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("edgetune"):
                continue
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                there = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                assert there, f"{path.name}: {node.module} has no {name}"
