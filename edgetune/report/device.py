"""What is left for the device: exact command lines, for the module, mode and TensorRT of a target.

Flags by version as trtexec's own option parser has them (NVIDIA/TensorRT, samples/common, tags 8.5 to 11.1).
None of these lines has been run on a device by the authors. It may import artifact, profile and device.
"""

from edgetune.artifact import TensorSpec
from edgetune.device import by_hand
from edgetune.profile import Target

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
SKIP_INFERENCE_SINCE = (8, 6)


def left_to_do(target: Target, inputs: tuple[TensorSpec, ...], length: int = 0) -> list[str]:
    """Return what remains, in order, as sentences and command lines; nothing for this machine itself.

    Args:
        target: where the network must run.
        inputs: of the ONNX files; one with a free batch size needs its shapes given.
        length: of the longest texts, where several are left open.
    """
    if target.is_host:
        return []
    shapes = _shapes(inputs, length)
    jetpack = target.profile.jetpacks[target.jetpack]
    mode = by_hand.mode_line(target)
    which = " (ID: as in /etc/nvpmodel.conf)" if " ID " in mode else ""
    strong = jetpack.typing == "strong"
    set_mode = [
        f"Set the mode {target.mode}{which} before building: engines are tuned to it. It may ask for a reboot."
        if target.profile.kind == "jetson"
        else "Lock the GPU's clock before building and timing; sudo nvidia-smi --reset-gpu-clocks frees it.",
        mode,
    ]
    there = f"{target.profile.title} ({target.software})"
    if target.no_int8:
        return [
            f"INT8 is out of reach there: {target.no_int8}. FP16 is what is delivered.",
            "`edgetune bundle`, on this run's folder, packs the network for the device, with a script that builds the "
            "engine and a text that says what works there. By hand:",
            f"Copy onnx/model.onnx (as {by_hand.ONNX}) to the {there}: an engine is built where it runs.",
            *set_mode,
            " ".join([by_hand.build_line(target), *_build_shapes(shapes)]),
            'Time it, and look at the median of "GPU Compute Time":',
            by_hand.time_line(target),
        ]
    # Where types are in the graph, the FP16 baseline is a file of its own.
    other = "int8/fp16.onnx" if strong else "onnx/model.onnx (as fp32.onnx)"
    return [
        "`edgetune bundle`, on this run's folder, packs all of it for the device, where one program builds, verifies "
        "and times both engines. By hand:",
        f"Copy {other} and int8/model.onnx (as int8.onnx) to the {there}: an engine is built where it runs.",
        *set_mode,
        "Build INT8, and FP16 beside it: INT8 is not always faster.",
        _build("int8", "int8", jetpack.tensorrt, "--stronglyTyped" if strong else "--int8 --fp16", shapes),
        _build(
            "fp16",
            "fp16" if strong else "fp32",
            jetpack.tensorrt,
            "--stronglyTyped" if strong else "--fp16",
            shapes,
        ),
        'Time both, and compare the medians of "GPU Compute Time":',
        _time("int8", jetpack.tensorrt, shapes if length else ""),
        _time("fp16", jetpack.tensorrt, shapes if length else ""),
    ]


def _version(tensorrt: str) -> tuple[int, ...]:
    return tuple(int(part) for part in tensorrt.split(".")[:2])


def _build(name: str, source: str, tensorrt: str, precision: str, shapes: str) -> str:
    """Return the line that builds an engine.

    Below TensorRT 11 a flag says where types come from: the builder, or the graph. From 11 on there is no
    such flag, and they come from the graph.
    """
    version = _version(tensorrt)
    words = [TRTEXEC, f"--onnx={source}.onnx", f"--saveEngine={name}.plan"]
    words += [precision] if version < (11, 0) else []
    words += _build_shapes(shapes)
    words += [
        "--buildOnly" if version < SKIP_INFERENCE_SINCE else "--skipInference",
        "--memPoolSize=workspace:512",
    ]
    return " ".join(words)


def _time(name: str, tensorrt: str, shapes: str) -> str:
    """Return the line that times an engine; what TensorRT 11 does unasked is asked for below it."""
    words = [TRTEXEC, f"--loadEngine={name}.plan", "--warmUp=2000", "--duration=30", "--iterations=1000"]
    words += ["--percentile=50,90,95,99", *([f"--shapes={shapes}"] if shapes else [])]
    words += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"] if _version(tensorrt) < (11, 0) else []
    return " ".join(words)


def _build_shapes(shapes: str) -> list[str]:
    return [f"--{end}Shapes={shapes}" for end in ("min", "opt", "max")] if shapes else []


def _shapes(inputs: tuple[TensorSpec, ...], length: int) -> str:
    """Return the shapes of inputs that leave some open, a batch of one and texts of that length; else nothing."""
    if all(isinstance(size, int) for spec in inputs for size in spec.shape):
        return ""
    sizes = (
        [
            str(size if isinstance(size, int) else (length or 1) if place else 1)
            for place, size in enumerate(spec.shape)
        ]
        for spec in inputs
    )
    return ",".join(f"{spec.name}:{'x'.join(own)}" for spec, own in zip(inputs, sizes, strict=True))
