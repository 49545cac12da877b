"""Building and timing an FP16 engine by hand, on devices for which no INT8 engine is built.

The device program's own generator writes the lines, for the TensorRT of the target's JetPack: what `trtexec` takes
there is known in one place. None of them has been run on a device by the authors. It may import profile and, of this
folder, the program.
"""

from edgetune.device.program.plan import Build
from edgetune.device.program.trtexec import USUAL
from edgetune.device.program.trtexec_commands import build_command, shown, time_command
from edgetune.profile import Target

ONNX, PLAN, TIMES, SCRIPT = "fp16.onnx", "fp16.plan", "fp16.times.json", "build.sh"
WARMUP_MS, SECONDS, QUERIES = 2000, 30, 1000

_SCRIPT = """\
#!/bin/sh
# Builds {plan}, an engine in FP16, of {onnx}: for TensorRT {tensorrt}, by its own program alone.
set -eu
cd -- "$(dirname -- "$0")"
trtexec=$(command -v trtexec || echo {usual})
"$trtexec" {arguments}
mv {plan}.partial {plan}
"""

_README = """\
This folder builds a TensorRT engine in FP16 on a {title}. An engine is built on the device that runs
it, so there is none in here yet. Copy the folder there, and type in it:

    sh {script}

It takes minutes and writes {plan}, beside this file. It runs {tensorrt_name}'s own program:

    {build}

{onnx} holds FP32; --fp16 lets TensorRT compute in FP16. The engine fits this module and this TensorRT alone. Set
the power mode before, since engines are tuned to it, and lock the clocks:

    {mode}

If the system kills it, memory has run out: close the desktop (sudo systemctl isolate multi-user.target), add swap on
a disk, or write a smaller number of MiB behind --workspace= in {script}.

To time the engine, copies of input and output included:

    {time}

"GPU Compute Time" is the computation alone, "Latency" has the copies in it; {times} holds every inference in ms.

Out of reach there:

- INT8: {why}.
- classify.py and classify.cpp, the examples of other bundles: they need TensorRT 8.5. An application calls
  TensorRT {tensorrt}'s own API.
- edgetune device and --on, by SSH: python3 must be 3.8 or later for them, and JetPack {jetpack} brings {python}.

With a Python of 3.8 or later beside that one (on Ubuntu 18.04: sudo apt install python3.8), the program in this folder
builds the same engine, compares what it says on {trtexec_samples} of the {samples} test images with what ONNX Runtime
gave, and times it, all through trtexec:

    python3.8 {program}

Bring results/ back beside {work}, and edgetune verify tells what they say.

Made for {label}: TensorRT {tensorrt}.
"""


def build_line(target: Target) -> str:
    """Return the line that builds the engine."""
    return shown(_build(target, USUAL[0], PLAN))


def time_line(target: Target) -> str:
    """Return the line that times the engine, copies included."""
    version = target.runtime.version
    return shown(time_command(USUAL[0], PLAN, version, SECONDS, WARMUP_MS, True, TIMES, QUERIES))


def mode_line(target: Target) -> str:
    """Return the line that sets the power mode and locks the clocks; of a desktop's GPU, its clock."""
    mode = target.profile.modes[target.mode]
    if target.profile.kind == "desktop":
        return f"sudo nvidia-smi --lock-gpu-clocks={'MHZ' if mode.gpu_mhz is None else f'{mode.gpu_mhz:g}'}"
    number = mode.nvpmodel_id
    return f"sudo nvpmodel -m {'ID' if number is None else number} && sudo jetson_clocks"


def script(target: Target) -> str:
    """Return a script for a shell that builds the engine beside itself, whole or not at all."""
    arguments = shown(_build(target, "", f"{PLAN}.partial")[1:])
    return _SCRIPT.format(
        plan=PLAN, onnx=ONNX, tensorrt=target.runtime.tensorrt, usual=USUAL[0], arguments=arguments
    )


def readme(target: Target, *, samples: int, trtexec_samples: int, program: str, work: str) -> str:
    """Return what a bundle says of itself where the engine is built by hand.

    Args:
        target: the device.
        samples: how many the bundle holds.
        trtexec_samples: how many of them the program compares.
        program: its file.
        work: the plan of work's file.
    """
    jetpack = target.profile.jetpacks[target.jetpack]
    return _README.format(
        title=target.profile.title, label=target.label, why=target.no_int8, mode=mode_line(target),
        build=build_line(target), time=time_line(target), tensorrt=jetpack.tensorrt, python=jetpack.python,
        tensorrt_name=f"TensorRT {jetpack.tensorrt}", jetpack=target.jetpack, samples=samples,
        trtexec_samples=trtexec_samples, program=program, work=work,
        script=SCRIPT, plan=PLAN, onnx=ONNX, times=TIMES,
    )  # fmt: skip


def _build(target: Target, path: str, plan: str) -> list[str]:
    job = Build("fp16", ONNX, plan, "fp16", target.runtime.rendering, target.profile.workspace)
    return build_command(path, job, target.runtime.version)
