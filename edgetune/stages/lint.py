"""Says why TensorRT or a DLA will refuse an ONNX file, fall back or run slower, and repairs what it can.

It may import errors, artifact, profile and quant.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from edgetune.artifact import Artifact, disk_error
from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import Target
from edgetune.quant.large import fits, save_beside
from edgetune.quant.lint import RULES, Finding, examine, repair
from edgetune.quant.lint_fix import Fixed
from edgetune.quant.lint_view import reader_of

MODEL_FILE = "model.onnx"
LARGEST_BYTES = 1 << 31


@dataclass(frozen=True)
class Verdict:
    """What there is to say about a file.

    Attributes:
        model: the file that was read.
        target: what is going to run it, in full.
        dla: whether on a DLA.
        findings: of the file that was read, or, after repair, of the one that was written.
        fixed: what was repaired.
        written: the repaired file.
    """

    model: Path
    target: str
    dla: bool
    findings: tuple[Finding, ...]
    fixed: tuple[Fixed, ...] = ()
    written: Path | None = None

    def count(self, severity: str) -> int:
        """Return how many findings have a severity."""
        return sum(item.severity == severity for item in self.findings)

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "model": str(self.model),
            "target": self.target,
            "dla": self.dla,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "infos": self.count("info"),
            "findings": [item.dump() for item in self.findings],
            "fixed": [item.dump() for item in self.fixed],
            "written": str(self.written) if self.written else None,
        }


def lint(
    model: Path, target: Target, *, dla: bool = False, fix: bool = False, into: Path | None = None
) -> Verdict:
    """Find every known reason against running a file on a target, on any CPU and without TensorRT.

    Args:
        model: an ONNX file, weights in files beside it included, or the folder of an artifact that has one.
        target: a profile with its JetPack.
        dla: whether it is to run on a DLA.
        fix: repair what leaves the network computing the same, beyond rounding.
        into: the file to write then; the input itself only where it is named here.

    Raises:
        ConfigError: no such file, or `fix` and `into` without each other.
        ArtifactError: it is no ONNX network, or its weights are missing.
        StageError: the disk is full.
    """
    if fix != (into is not None):
        raise ConfigError(
            "repairing writes a new file, and nothing else does",
            hint="give both or none: --fix -o OUT.onnx",
        )
    path = Artifact.load(model).file(MODEL_FILE) if model.is_dir() else model
    reader = reader_of(target, dla)
    if path.is_file() and path.stat().st_size > LARGEST_BYTES:
        rule, size = RULES["file-size"], path.stat().st_size
        reason = f"{size / 1e9:.1f} GB in one file, which no parser reads"
        finding = Finding("file-size", rule.severity, "", reason, rule.source, rule.remedy)
        return Verdict(path, target.label, dla, (finding,))
    network, beside = _read(path)
    if into is None:
        return Verdict(path, target.label, dla, examine(network, reader, beside))
    made, fixed, left = repair(network, reader, beside)
    _write(made, into, beside)
    return Verdict(path, target.label, dla, left, fixed, into)


def _read(path: Path) -> tuple[ModelProto, bool]:
    """Return the network with all its weights, and whether they lay in files beside it."""
    try:
        model = onnx.load_model(path, load_external_data=False)
        beside = any(i.data_location == TensorProto.EXTERNAL for i in model.graph.initializer)
        if beside:
            model = onnx.load_model(path)
    except FileNotFoundError as error:
        if not path.exists():
            raise ConfigError(f"{path}: no such file") from error
        raise ArtifactError(
            f"{path}: {error}", hint="its weights lie in files beside it: copy those too"
        ) from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not an ONNX file", hint="name a .onnx file") from error
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"{path}: {reason}", hint="its weights lie in files beside it: copy those too"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: holds no network", hint="name an .onnx file")
    return model, beside


def _write(model: ModelProto, path: Path, beside: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if beside or not fits(model):
            save_beside(model, path)
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise disk_error(error, path) from error
