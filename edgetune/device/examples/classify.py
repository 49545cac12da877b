"""Classifies one frame with an engine of this bundle: TensorRT's Python bindings, CUDA by ctypes, nothing else.

    python3 classify.py FRAME [ENGINE]

FRAME holds height x width x channels bytes, as a camera gives them (red, green, blue; or gray), resized and cropped
as "preprocess" in work.json says. ENGINE is int8 (the default) or fp16; edgetune.pyz has built it. Copy this file
and change it: it is an example, and imports nothing of edgetune.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from array import array
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TO_DEVICE, TO_HOST = 1, 2
LIBRARIES = (
    "libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so.11.0",
    "/usr/local/cuda/lib64/libcudart.so",
)
TOP = 5


class Cuda:
    """The few calls of the CUDA runtime that one inference needs."""

    def __init__(self) -> None:
        """Load the library; end the program where there is none, or no driver."""
        for name in LIBRARIES:
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            sys.exit("no libcudart.so: install JetPack's cuda-cudart, or set LD_LIBRARY_PATH to where it is")
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.library.cudaMalloc.argtypes = [ctypes.POINTER(pointer), size]
        self.library.cudaMemcpyAsync.argtypes = [pointer, pointer, size, ctypes.c_int, pointer]
        self.library.cudaStreamSynchronize.argtypes = [pointer]
        self.call("cudaFree", None)  # without a driver, the first call of any kind fails

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; end the program where it fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            sys.exit(f"{name}: {self.library.cudaGetErrorString(code).decode()}")

    def allocate(self, size: int) -> int:
        """Allocate bytes on the GPU. The end of the program gives them back."""
        made = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(made), size)
        return made.value or 0

    def stream(self) -> int:
        """Create a queue of work."""
        made = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(made))
        return made.value or 0


class Classifier:
    """An engine with its memory: frames in, logits out."""

    def __init__(self, plan: Path, dla_core: int | None = None) -> None:
        """Load an engine, of a DLA if one is named; end the program where TensorRT does not take it, and says why."""
        self.cuda = Cuda()
        # Not before the CUDA driver has answered: without one, TensorRT's objects end the process.
        import tensorrt as trt

        self.runtime = trt.Runtime(trt.Logger())
        if dla_core is not None:
            self.runtime.DLA_core = dla_core
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            sys.exit(f"{plan}: TensorRT {trt.__version__} does not take it; build it here with edgetune.pyz")
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.input = next(n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.output = next(n for n in names if n != self.input)
        self.takes_floats = self.engine.get_tensor_dtype(self.input) == trt.DataType.FLOAT
        self.shape = tuple(self.engine.get_tensor_shape(self.input))
        self.given = array("f", bytes(4 * math.prod(tuple(self.engine.get_tensor_shape(self.output)))))
        self.size = math.prod(self.shape) * (4 if self.takes_floats else 1)
        self.stream = self.cuda.stream()
        self.memory = {
            self.input: self.cuda.allocate(self.size),
            self.output: self.cuda.allocate(4 * len(self.given)),
        }
        for name, address in self.memory.items():
            self.context.set_tensor_address(name, address)

    def logits(self, content: bytes) -> list[float]:
        """Run the engine on what it takes."""
        copy = "cudaMemcpyAsync"
        self.cuda.call(copy, self.memory[self.input], content, self.size, TO_DEVICE, self.stream)
        if not self.context.execute_async_v3(self.stream):
            sys.exit("the engine could not be run")
        host, size = self.given.buffer_info()[0], 4 * len(self.given)
        self.cuda.call(copy, host, self.memory[self.output], size, TO_HOST, self.stream)
        self.cuda.call("cudaStreamSynchronize", self.stream)
        return list(self.given)


def normalised(frame: bytes, table: Path, channels: int) -> bytes:
    """Turn uint8 [H, W, C] into float32 [C, H, W]; the table holds what each of 256 values becomes, by channel."""
    values = array("f", table.read_bytes())
    planes = array("f")
    for channel in range(channels):
        row = values[256 * channel : 256 * (channel + 1)]
        planes.extend(row[value] for value in frame[channel::channels])
    return planes.tobytes()


def main() -> None:
    """Classify the frame that the command line names."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    work = json.loads((HERE / "work.json").read_text(encoding="utf-8"))
    name = sys.argv[2] if len(sys.argv) > 2 else "int8"
    plan = HERE / "results" / f"{name}.plan"
    if not plan.is_file():
        sys.exit(f"{plan}: no such engine; build it first: python3 edgetune.pyz")
    classifier = Classifier(plan, work["wanted"].get("dla_core"))
    frame = Path(sys.argv[1]).read_bytes()
    if len(frame) != math.prod(classifier.shape):
        sys.exit(
            f"{sys.argv[1]}: {len(frame)} bytes, and the engine takes {math.prod(classifier.shape)} values"
        )
    if classifier.takes_floats:
        frame = normalised(frame, HERE / work["samples"]["table"], classifier.shape[1])
    logits = classifier.logits(frame)
    powers = [math.exp(value - max(logits)) for value in logits]
    for index in sorted(range(len(logits)), key=lambda i: -logits[i])[:TOP]:
        print(f"{100 * powers[index] / sum(powers):5.1f}%  {work['classes'][index]}")


if __name__ == "__main__":
    main()
