"""Any ONNX file as a graph of known shapes, without its weights: what an estimate needs, or why there is none.

Weights larger than a few numbers are never read, so files with weights beside them need only the file itself.
It may import errors, quant.graph, quant.lint_view, quant.macs and quant.prepare.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgetune.errors import ArtifactError, ConfigError, EdgetuneError
from edgetune.quant.graph import Graph, infer_types
from edgetune.quant.lint_view import is_qdq, normalized
from edgetune.quant.macs import operations
from edgetune.quant.prepare import drop_dead, fold_constants

Shapes = Mapping[str, tuple[int, ...]]
# Constants up to this many numbers may be shapes, axes or pads; larger ones are weights.
_SMALL = 1024


@dataclass
class Network:
    """A graph whose live nodes all have known shapes.

    Attributes:
        graph: the nodes that run, in order, Q and DQ among them.
        fixed: names of tensors that depend on no input: weights, and what is computed from them.
        dequantized: names of what DequantizeLinear nodes give, also of those whose result is constant.
    """

    graph: Graph
    fixed: frozenset[str]
    dequantized: frozenset[str]

    @property
    def nodes(self) -> list[NodeProto]:
        """Nodes that depend on an input, in running order."""
        return [node for node in self.graph.nodes if not all(name in self.fixed for name in node.output)]

    @cached_property
    def quantized(self) -> bool:
        """Whether the file holds Q/DQ."""
        return any(is_qdq(node) for node in self.graph.nodes)

    @cached_property
    def reads_texts(self) -> bool:
        """Whether whole numbers go in that a table is looked up by: an embedding of tokens."""
        made = {value.name: value.type.tensor_type.elem_type for value in self.graph.model.graph.input}
        looked = {
            node.input[1] for node in self.nodes if node.op_type == "Gather" and node.input[0] in self.fixed
        }
        return any(made.get(name) in (TensorProto.INT32, TensorProto.INT64) for name in looked)

    def size(self, tensor: str) -> int:
        """Return a tensor's number of elements."""
        return math.prod(size for size in self.shape(tensor))

    def width(self, name: str) -> int:
        """Return the bytes of one element of an input."""
        value = next(value for value in self.graph.model.graph.input if value.name == name)
        return int(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's shape; every one is known."""
        return tuple(size for size in self.graph.shape(tensor) or () if isinstance(size, int))


def read_network(source: Path | ModelProto, shapes: Shapes | None = None) -> Network:
    """Read a network's structure.

    Args:
        source: an ONNX file, or a model that is loaded.
        shapes: of inputs whose size the file leaves open; "" names the only input.

    Raises:
        ConfigError: no such file, an input of open size without `shapes`, or `shapes` that do not fit.
        ArtifactError: it is no ONNX network, has no nodes, or shapes inside it are known only when it runs.
    """
    model = source if isinstance(source, ModelProto) else _load(source)
    name = "the network" if isinstance(source, ModelProto) else str(source)
    if not model.graph.node:
        raise ArtifactError(f"{name}: holds no network: it has no nodes", hint="name another .onnx file")
    work, weights = _without_weights(model)
    # The longest texts are what a network is judged by.
    _fix_inputs(work, weights, shapes or max(shapes_by_length(model).items(), default=(0, {}))[1], name)
    dequantized = frozenset(node.output[0] for node in work.graph.node if is_qdq(node, "DequantizeLinear"))
    try:
        while fold_constants(work):
            pass
        drop_dead(work)
        graph = Graph(infer_types(work))
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{name}: not a valid graph: {reason}", hint="export it again") from error
    fixed = weights | set(graph.constants)
    for node in graph.nodes:
        if all(given in fixed for given in node.input if given) and node.input:
            fixed.update(node.output)
    network = Network(graph, frozenset(fixed), dequantized)
    if not network.nodes:
        raise ArtifactError(
            f"{name}: holds no network: nothing in it depends on an input", hint="name another .onnx file"
        )
    return network


def shapes_by_length(source: Path | ModelProto) -> dict[int, Shapes]:
    """Return the shapes of the inputs by length, of a network of edgetune's that takes texts of several."""
    model = source if isinstance(source, ModelProto) else _load(source)
    said = next((item.value for item in model.metadata_props if item.key == "preprocess"), "")
    try:
        lengths = [int(length) for length in json.loads(said)["lengths"]]
    except (ValueError, KeyError, TypeError):
        return {}
    weights = {item.name for item in model.graph.initializer}
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in weights
    }
    several = len(lengths) > 1 and all(
        shape and all(shape[:-1]) and not shape[-1] for shape in known.values()
    )
    return {
        length: {name: (*shape[:-1], length) for name, shape in known.items()}
        for length in lengths
        if several
    }


def node_operations(path: Path, shapes: Shapes | None = None) -> dict[str, int | None]:
    """Return how many operations each node of a file takes, by its name; None: they are not known.

    `shapes` are of inputs whose size the file leaves open.

    Of texts of several lengths the longest count. Nothing where the file cannot be read, or leaves sizes open.
    """
    try:
        network = read_network(path, shapes)
    except EdgetuneError:
        return {}
    return {node.name: operations(network.graph, node) for node in network.nodes}


def _load(path: Path) -> ModelProto:
    try:
        return onnx.load_model(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not an ONNX file", hint="name a .onnx file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _without_weights(model: ModelProto) -> tuple[ModelProto, set[str]]:
    """Return a copy in which weights are inputs, and their names; functions are written out."""
    bare = ModelProto(ir_version=model.ir_version, functions=model.functions, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.output.extend(model.graph.output)
    bare.graph.value_info.extend(model.graph.value_info)
    large = [
        item
        for item in model.graph.initializer
        if math.prod(item.dims) > _SMALL or item.data_location == TensorProto.EXTERNAL
    ]
    weights = {item.name for item in large}
    bare.graph.input.extend(value for value in model.graph.input if value.name not in weights)
    for item in large:
        bare.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    bare.graph.initializer.extend(item for item in model.graph.initializer if item.name not in weights)
    for node in model.graph.node:
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if node.op_type == "Constant" and value is not None and math.prod(value.dims) > _SMALL:
            bare.graph.input.append(
                helper.make_tensor_value_info(node.output[0], value.data_type, value.dims)
            )
            weights.add(node.output[0])
        else:
            bare.graph.node.append(node)
    return normalized(bare), weights


def _fix_inputs(model: ModelProto, weights: set[str], shapes: Shapes, name: str) -> None:
    """Write the sizes of the inputs down, and refuse what stays open."""
    constants = {item.name for item in model.graph.initializer} | weights
    inputs = [value for value in model.graph.input if value.name not in constants]
    known = [value.name for value in inputs]
    if "" in shapes and len(inputs) != 1:
        raise ConfigError(
            f"{name}: has {len(inputs)} inputs: {', '.join(known)}",
            hint=f"say whose shape it is: --shape {known[0] if known else 'NAME'}=1x3x224x224",
        )
    unknown = sorted(set(shapes) - set(known) - {""})
    if unknown:
        raise ConfigError(f"{name}: no input {unknown[0]!r}", hint=f"its inputs: {', '.join(known)}")
    for value in inputs:
        kind = value.type.tensor_type
        said = [d.dim_value or d.dim_param or "?" for d in kind.shape.dim] if kind.HasField("shape") else None
        given = shapes.get(value.name) or shapes.get("")
        if given is None:
            if said is not None and all(isinstance(size, int) for size in said):
                continue
            raise ConfigError(
                f"{name}: the input {value.name!r} has no fixed size: "
                f"{'x'.join(map(str, said)) if said is not None else 'its shape is not stated'}",
                hint=f"say it: --shape {value.name}={_example(said)}{', and of the others' if len(inputs) > 1 else ''}",
            )
        fits = said is None or (
            len(said) == len(given)
            and all(isinstance(s, str) or s == g for s, g in zip(said, given, strict=True))
        )
        if not fits or min(given, default=1) < 1:
            raise ConfigError(
                f"{name}: the input {value.name!r} is {'x'.join(map(str, said or ()))}, "
                f"which {'x'.join(map(str, given))} does not fit",
                hint="only sizes that the file leaves open can be given, as whole numbers from 1",
            )
        del kind.shape.dim[:]
        for size in given:
            kind.shape.dim.add().dim_value = size
    # What was inferred for open sizes is in the way of what follows from the fixed ones.
    del model.graph.value_info[:]
    if shapes:
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")


def _example(said: list[int | str] | None) -> str:
    if said is None:
        return "1x3x224x224"
    side = "64" if len(said) == 2 else "224"
    return "x".join(
        str(size) if isinstance(size, int) else "1" if i == 0 else side for i, size in enumerate(said)
    )
