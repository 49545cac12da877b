"""Whether a target has a DLA, whether that takes Q/DQ, and what of a network it will leave to the GPU.

Found without TensorRT. It may import errors, profile, the device program's facts about DLAs, and the rest of
quant.
"""

from onnx import ModelProto

from edgetune.device.program import dla
from edgetune.errors import ConfigError
from edgetune.profile import Target
from edgetune.quant.lint import examine
from edgetune.quant.lint_view import reader_of

# Kinds of operators that are named in a line.
_NAMED = 4


def refuse(target: Target, core: int) -> None:
    """Refuse a DLA that is not there, or that the target's TensorRT does not drive.

    Raises:
        ConfigError: with what to do instead.
    """
    profile, cores = target.profile, target.profile.dla_cores
    gpu = "leave --dla away: the GPU runs both engines"
    if not cores:
        raise ConfigError(f"{target.label}: {profile.title} has no DLA", hint=gpu)
    if not 0 <= core < cores:
        numbers = " and ".join(map(str, range(cores)))
        raise ConfigError(f"--dla {core}: {profile.title} has DLA {numbers}", hint=f"--dla {cores - 1}")
    tensorrt = f"{target.label}: TensorRT {target.runtime.tensorrt}"
    if not dla.drives(_version(target)):
        others = [target.model_copy(update={"jetpack": name}) for name in profile.jetpacks]
        known = ", ".join(other.jetpack for other in others if dla.drives(_version(other)))
        raise ConfigError(
            f"{tensorrt} does not drive a DLA: 10.7 was the last before 11.4.1",
            hint=f"run it for a JetPack whose TensorRT does ({known}): --profile NAME@JETPACK"
            if known
            else gpu,
        )
    if takes_pairs(target) and "AGX Orin" not in profile.title:
        raise ConfigError(f"{tensorrt} drives the DLAs of AGX Orin alone", hint=gpu)


def takes_pairs(target: Target) -> bool:
    """Say whether the target's DLA takes Q/DQ; else it takes scales beside a graph without."""
    return dla.takes_pairs(_version(target))


def _version(target: Target) -> tuple[int, ...]:
    return reader_of(target).version


def on_gpu(model: ModelProto, target: Target) -> str:
    """Return what will run on the GPU beside a DLA, in a line; empty: nothing, as far as it is known.

    Args:
        model: as it is bundled.
        target: with a DLA.
    """
    found = [item for item in examine(model, reader_of(target, dla=True)) if item.rule.startswith("dla-")]
    named = {item.node for item in found if item.node}
    kinds = sorted({node.op_type for node in model.graph.node if node.name in named})
    more = f" and {len(kinds) - _NAMED} more kinds" if len(kinds) > _NAMED else ""
    nodes = "operator is" if len(named) == 1 else "operators are"
    said = [f"{len(named)} {nodes} not for a DLA ({', '.join(kinds[:_NAMED])}{more})"] if named else []
    return "; ".join([*said, *(item.reason for item in found if not item.node)])
