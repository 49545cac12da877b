"""From a checkpoint to one ONNX file that a runtime can read, and that computes what torch computes.

The file is read back and compared with torch on real inputs before it is accepted. It knows no
quantization. May import data, engines, quant.graph, quant.pixels and training.
"""

import ctypes
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from edgetune.artifact import Artifact, How, Preprocess, Tokens, disk_error, library_versions
from edgetune.data.folders import Dataset
from edgetune.data.reader import NAMES, example
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.models.text import Inputs, TextNet
from edgetune.profile import LEAST_OPSET, STRONG_OPSET, Runtime, check_input
from edgetune.progress import Progress, Silent
from edgetune.quant.graph import RANDOM_OPS, reads, reads_inside
from edgetune.quant.pixels import take_pixels
from edgetune.recipe import ExportSection
from edgetune.training.checkpoint import load_network
from edgetune.training.parity import parity

MODEL_FILE = "model.onnx"
INPUT, OUTPUT, BATCH, LENGTH = "input", "logits", "N", "L"

# Below, DequantizeLinear has no axis: no scales per channel.
# What torch's exporter writes by itself; beyond, onnx converts.
_OPSET_TORCH = 20
# Tensors up to this many values can be shapes, axes and the like.
_SMALL = 1024


def export(
    checkpoint: Artifact,
    settings: ExportSection,
    runtime: Runtime,
    data: Dataset,
    *,
    into: Path,
    module: nn.Module | None = None,
    progress: Progress = Silent(),  # noqa: B008
) -> Artifact:
    """Export a checkpoint: BatchNorm folded, input `input`, output `logits` [N, K].

    The input takes normalised images [N, C, H, W]; with `settings.input` `uint8_nhwc` pixels [N, H, W, C] as they
    are, which the graph then normalises as `data.images.normalise` does, to the bit.

    Args:
        checkpoint: what fine-tuning made.
        settings: input, batch, and an opset below the runtime's.
        runtime: opset and IR version that the target reads.
        data: inputs of its test split are what the file is compared with torch on.
        into: the folder to write into.
        module: the user's own network, where the checkpoint was made of one.
        progress: told how far it is.

    Returns:
        An artifact of the kind `onnx`; `details["parity"]` holds how far the file is from torch.

    Raises:
        ConfigError: an opset or an input that the runtime does not take.
        ArtifactError: the checkpoint is not one, or is not whole.
        StageError: an operator that ONNX does not have, or a file that computes something else than torch.
    """
    opset = _opset(settings, runtime)
    check_input(settings.input, runtime)
    into.mkdir(parents=True, exist_ok=True)
    net = load_network(checkpoint, module)
    how = _inputs_of(checkpoint, settings)
    model = _trace(net, how, settings, opset, runtime, into / ".torch.onnx")
    _simplify(model)
    if isinstance(how, Preprocess) and settings.input == "uint8_nhwc":
        take_pixels(model, how)
    _describe(model, checkpoint, how, runtime)
    path = into / MODEL_FILE
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise disk_error(error, path) from error
    session = _read_back(path, opset, runtime, settings, checkpoint)
    found = parity(net, session, data, how, progress)
    return Artifact(
        kind="onnx",
        classes=checkpoint.classes,
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=how,
        parents={"checkpoint": checkpoint.digest},
        details={
            "input": session.inputs[0].dtype if isinstance(how, Tokens) else settings.input,
            "opset": opset,
            "ir": runtime.ir,
            "nodes": len(model.graph.node),
            "parity": found,
        },
    ).write(into)


def _inputs_of(checkpoint: Artifact, settings: ExportSection) -> How:
    """Return how the file's inputs are made: a checkpoint's, of texts in the lengths asked for."""
    how = checkpoint.preprocess
    if how is None:
        raise ArtifactError(f"{checkpoint.path}: a checkpoint without preprocess", hint="make it again")
    if not isinstance(how, Tokens):
        if settings.lengths:
            raise ConfigError("export.lengths: texts have lengths, and this network takes images")
        return how
    if settings.input != "float32_nchw":
        raise ConfigError(f"export.input: {settings.input} is of images, and this network takes texts")
    lengths = tuple(sorted(set(settings.lengths) or {how.length}))
    if lengths[-1] > how.length:
        raise ConfigError(
            f"export.lengths: {lengths[-1]}, and the network was trained with {how.length} tokens at most",
            hint="model.length says how many",
        )
    return how.model_copy(update={"length": lengths[-1], "lengths": lengths})


def _opset(settings: ExportSection, runtime: Runtime) -> int:
    opset = settings.opset or runtime.opset
    if opset > runtime.opset:
        raise ConfigError(
            f"export.opset: {opset} is above {runtime.opset}, the profile's",
            hint="leave it out: the profile sets it",
        )
    if opset < LEAST_OPSET:
        raise ConfigError(
            f"export.opset: {opset} is below {LEAST_OPSET}, the first with scales per channel",
            hint="leave it out: the profile sets it",
        )
    if runtime.rendering == "strong" and opset < STRONG_OPSET:
        raise ConfigError(
            f"export.opset: {opset} is below {STRONG_OPSET}, which a strongly typed engine needs",
            hint="leave it out: the profile sets it",
        )
    return opset


def _trace(
    net: nn.Module, how: How, settings: ExportSection, opset: int, runtime: Runtime, scratch: Path
) -> onnx.ModelProto:
    """Let torch write ONNX.

    By its older exporter: the newer one raises opset 17 to 18 where there is global pooling, and says
    nothing.
    """
    # A batch of one would be traced as a constant.
    batch = 2 if settings.dynamic else settings.batch
    sample = torch.from_numpy(example(how, batch))
    if isinstance(how, Preprocess):
        # Unlike any image: a branch on values is then traced otherwise than images go, and found out.
        sample.zero_()
    given: tuple[torch.Tensor, ...] = (sample,)
    names, free = [INPUT], {0: BATCH} if settings.dynamic else {}
    if isinstance(net, TextNet):
        # TensorRT reads 64-bit integers from 10.0 on only.
        kind = torch.int64 if runtime.rendering == "cpu" else torch.int32
        net, names = Inputs(net).eval(), list(NAMES)
        given = tuple(sample[:, NAMES[name]].to(kind) for name in names)
        free |= {1: LENGTH} if isinstance(how, Tokens) and len(how.lengths) > 1 else {}
    dynamic = dict.fromkeys(names, free) | {OUTPUT: {0: BATCH} if settings.dynamic else {}}
    try:
        with _quiet():
            torch.onnx.export(
                net,
                given,
                scratch,
                dynamo=False,
                opset_version=min(opset, _OPSET_TORCH),
                input_names=names,
                output_names=[OUTPUT],
                dynamic_axes=dynamic if free else None,
            )
            model = onnx.load(scratch)
            if free and not settings.dynamic:
                # Of open lengths the exporter does not see that the batch stays.
                model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = settings.batch
            return onnx.version_converter.convert_version(model, opset) if opset > _OPSET_TORCH else model
    # Tracing runs the network, which may be the user's own and raise anything.
    except Exception as error:
        raise StageError(
            f"torch cannot export this network with opset {opset}: {_reason(error)}",
            hint="replace that operator in the network, or choose another network or input size",
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    first = re.split(r"(?<=[^.]{9})\. |\n", text)[0].removeprefix("Unsupported: ")
    return first if isinstance(error, RuntimeError) else f"{type(error).__name__}: {first}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings, and the whole graph that it prints when it fails, off the terminal."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    kept = os.dup(1)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as sink:
        warnings.simplefilter("ignore")
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _simplify(model: onnx.ModelProto) -> None:
    """Work out once what does not depend on the input, in place.

    Constant nodes and whatever follows from constants and fixed shapes become initializers; Identity nodes
    go, which torch writes where two tensors are equal. Subgraphs (If, Loop) stay as they are.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    shapes = _fixed_shapes(model)
    outputs = {value.name for value in graph.output}
    nested = {name for node in graph.node for name in reads_inside(node)}
    alias: dict[str, str] = {}
    folded, kept = [], []
    for node in graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs | nested:
            alias[node.output[0]] = node.input[0]
        elif node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            value = np.asarray(shapes[node.input[0]], np.int64)
            folded.append(helper.make_node("Constant", [], node.output, value=numpy_helper.from_array(value)))
            constants.update(node.output)
        elif _is_constant(node, constants) and outputs.isdisjoint(node.output):
            folded.append(node)
            constants.update(node.output)
        else:
            kept.append(node)
    used = {name for node in kept for name in reads(node)}
    known = _evaluate(model, folded, sorted(used & {name for node in folded for name in node.output}))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
    graph.initializer.extend(known)


def _is_constant(node: onnx.NodeProto, constants: set[str]) -> bool:
    # What a subgraph reads of its own is no constant, so nodes with one stay.
    standard = node.domain in ("", "ai.onnx") and node.op_type not in RANDOM_OPS
    return standard and all(name in constants for name in reads(node))


def _fixed_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes, in numbers, of all tensors that have one; weights are left out of the search."""
    graph = model.graph
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _SMALL]
    light = helper.make_graph(
        graph.node,
        graph.name,
        [*graph.input, *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)],
        graph.output,
        [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _SMALL],
    )
    found = onnx.shape_inference.infer_shapes(
        helper.make_model(light, opset_imports=model.opset_import)
    ).graph
    shapes = {}
    for value in [*graph.input, *found.value_info]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    return shapes


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]
) -> list[onnx.TensorProto]:
    needed = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    values = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    return [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(wanted, values, strict=True)]


def _describe(model: onnx.ModelProto, checkpoint: Artifact, how: How, runtime: Runtime) -> None:
    """Set the IR version and metadata, and take out what depends on this machine."""
    model.ir_version = runtime.ir
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    preprocess = how.model_dump(mode="json")
    helper.set_model_props(
        model,
        {
            "classes": json.dumps(checkpoint.classes, ensure_ascii=False),
            "preprocess": json.dumps(preprocess, sort_keys=True),
            "edgetune": library_versions("edgetune")["edgetune"],
            "checkpoint": checkpoint.digest,
        },
    )


def _read_back(
    path: Path, opset: int, runtime: Runtime, settings: ExportSection, checkpoint: Artifact
) -> Session:
    """Load what was written, and refuse it where it is not what was asked for."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"{path}: torch wrote an invalid file: {str(error).splitlines()[0]}") from error
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found != {"ai.onnx": opset} or model.ir_version != runtime.ir:
        raise StageError(
            f"{path}: opsets {found} and IR {model.ir_version}, asked for were {opset} and {runtime.ir}",
            hint="this version of torch writes other files than it was asked for; use another one",
        )
    session = Session(path)
    batch = BATCH if settings.dynamic else settings.batch
    shape = (batch, len(checkpoint.classes))
    got = [(spec.name, spec.shape) for spec in session.outputs]
    if got != [(OUTPUT, shape)]:
        raise StageError(f"{path}: gives {got}, where {OUTPUT} {list(shape)} was expected")
    return session
