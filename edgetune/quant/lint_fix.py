"""What the lint can repair: only what leaves the network computing the same, beyond rounding.

Every fix works on a copy of the file, normalized (names for nodes, Constants as initializers), and says what
it did. Whether a finding can be fixed is not said anywhere else: the lint fixes a copy and looks again.
It may import quant.graph, quant.plan, quant.prepare and quant's lint_view, lint_qdq, lint_model and lint_dla.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgetune.quant.graph import Graph, attribute, is_standard, opset_of, reads
from edgetune.quant.lint_model import OPSET_CHANNELS
from edgetune.quant.lint_opset import write_ir, write_opset
from edgetune.quant.lint_qdq import weight_scales
from edgetune.quant.lint_view import Reader, is_qdq, normalized, view_of
from edgetune.quant.plan import WEIGHTED
from edgetune.quant.prepare import drop_dead

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_WINDOW = 8


@dataclass(frozen=True)
class Fixed:
    """One repair: the rule that it satisfies, where, and what was done."""

    rule: str
    node: str
    what: str

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


Done = list[tuple[str, str]]


def fix_model(model: ModelProto, reader: Reader) -> tuple[ModelProto, tuple[Fixed, ...]]:
    """Return the network with everything fixed that can be, and what was done. The one given stays as it is."""
    work = normalized(model)
    done = [Fixed(rule, node, what) for rule, fix in FIXES.items() for node, what in fix(work, reader)]
    if model.functions:
        done.append(Fixed("local-function", "", f"{len(model.functions)} functions written out"))
    if not done:
        work.CopyFrom(model)
        return work, ()
    drop_dead(work)
    _forget_types(work)
    return work, tuple(done)


def _forget_types(model: ModelProto) -> None:
    """Remove what the file says of tensors around Q/DQ: their types may have changed."""
    changed = {name for node in model.graph.node if is_qdq(node) for name in (*node.input, *node.output)}
    kept = [value for value in model.graph.value_info if value.name not in changed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _put(model: ModelProto, name: str, value: NDArray[Any]) -> str:
    """Add an initializer under a name that is still free; return the name."""
    taken = {item.name for item in model.graph.initializer} | {
        n for node in model.graph.node for n in node.output
    }
    while name in taken:
        name += "_"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _read_instead(model: ModelProto, old: str, new: str) -> bool:
    """Let all readers of a tensor read another one; return False where a subgraph or an output names it."""
    named = {value.name for value in model.graph.output}
    inside = {name for node in model.graph.node for name in reads(node)} - {
        name for node in model.graph.node for name in node.input
    }
    if old in named | inside:
        return False
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return True


def _parameters(graph: Graph, node: NodeProto) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Return scale and zero point of a Q/DQ node, None where they are missing or computed."""
    names = [*node.input[1:], "", ""][:2]
    return graph.constants.get(names[0]), graph.constants.get(names[1])


def _set_zero(model: ModelProto, node: NodeProto, kind: type[Any], shape: tuple[int, ...]) -> None:
    name = _put(model, f"{node.input[1]}/zero", np.zeros(shape, kind))
    node.input[:] = [*node.input[:2], name]


def _standard_domain(model: ModelProto, _: Reader) -> Done:
    done = []
    for node in model.graph.node:
        if is_qdq(node) and node.domain == "com.microsoft":
            kinds = {i.data_type for i in model.graph.initializer if i.name in node.input[2:3]}
            if kinds <= {TensorProto.INT8, TensorProto.UINT8} and kinds:
                node.domain = ""
                done.append((node.name, "moved from com.microsoft into ONNX's own domain"))
    if done and all(node.domain != "com.microsoft" for node in model.graph.node):
        kept = [item for item in model.opset_import if item.domain != "com.microsoft"]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    return done


def _float_bias(model: ModelProto, _: Reader) -> Done:
    graph, done = Graph(model), []
    for node in graph.nodes:
        levels = graph.constants.get(node.input[0]) if is_qdq(node, _DQ) else None
        if levels is None or levels.dtype != np.int32 or node.output[0] in graph.outputs:
            continue
        scale, zero = _parameters(graph, node)
        if scale is None or levels.ndim > 1 or scale.size not in (1, levels.size):
            continue
        shift = np.int32(0) if zero is None else zero.astype(np.int32)
        value = (levels - shift).astype(scale.dtype) * scale.reshape(levels.shape if scale.size > 1 else ())
        model.graph.node.remove(node)
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(value, scale.dtype), node.output[0])
        )
        done.append((node.name, "the bias is stored as floats of the same values"))
    return done


def _signed(model: ModelProto, _: Reader) -> Done:
    graph, done = Graph(model), []
    for node in graph.nodes:
        zero = _parameters(graph, node)[1] if is_qdq(node) else None
        if zero is None or zero.dtype not in (np.uint8, np.int8):
            continue
        if node.op_type == _DQ and node.input[0] in graph.constants:
            if _shift_constant(model, graph, node, zero):
                done.append((node.name, "constants shifted to int8 with zero point 0"))
        elif node.op_type == _Q and _is_middle(zero):
            readers = graph.consumers.get(node.output[0], [])
            pairs = [reader for reader in readers if is_qdq(reader, _DQ)]
            zeros = [_parameters(graph, reader)[1] for reader in pairs]
            if (
                len(pairs) < len(readers)
                or node.output[0] in graph.outputs
                or not all(map(_is_middle, zeros))
            ):
                continue
            for item in (node, *pairs):
                _set_zero(model, item, np.int8, zero.shape)
            done.append((node.name, "uint8 around 128 is int8 around 0"))
    return done


def _is_middle(zero: NDArray[Any] | None) -> bool:
    return zero is not None and zero.dtype == np.uint8 and bool((zero == 128).all())


def _shift_constant(model: ModelProto, graph: Graph, node: NodeProto, zero: NDArray[Any]) -> bool:
    """Store constants with zero point 0, if all of them fit."""
    levels = graph.constants[node.input[0]]
    if levels.dtype == np.int8 and not zero.any():
        return False
    shift = zero.astype(np.int16)
    if zero.size > 1:
        axis = attribute(node, "axis", 1) % levels.ndim
        if zero.size != levels.shape[axis]:
            return False
        shift = shift.reshape([-1 if i == axis else 1 for i in range(levels.ndim)])
    moved = levels.astype(np.int16) - (shift if zero.size > 1 else shift.reshape(()))
    if moved.min(initial=0) < -128 or moved.max(initial=0) > 127:
        return False
    node.input[0] = _put(model, f"{node.input[0]}/int8", moved.astype(np.int8))
    _set_zero(model, node, np.int8, zero.shape)
    return True


def _zero_points(model: ModelProto, _: Reader) -> Done:
    graph, done = Graph(model), []
    for node in graph.nodes:
        if not is_qdq(node, _DQ) or (len(node.input) > 2 and node.input[2]):
            continue
        source = graph.producers.get(node.input[0])
        levels = graph.constants.get(node.input[0])
        if levels is None and source is not None and is_qdq(source, _Q):
            levels = _parameters(graph, source)[1]
        scale = _parameters(graph, node)[0]
        if levels is not None and scale is not None and levels.dtype == np.int8:
            _set_zero(model, node, np.int8, scale.shape)
            done.append((node.name, "the zero point of 0 is written out"))
    return done


def _zero_sizes(model: ModelProto, _: Reader) -> Done:
    graph, done = Graph(model), []
    for node in graph.nodes:
        scale, zero = _parameters(graph, node) if is_qdq(node) else (None, None)
        if (
            scale is not None
            and zero is not None
            and scale.size != zero.size
            and not zero.astype(np.int64).any()
        ):
            _set_zero(model, node, zero.dtype.type, scale.shape)
            done.append((node.name, "as many zero points as scales"))
    return done


def _one_scale(model: ModelProto, reader: Reader) -> Done:
    view = view_of(model, reader)
    constant = {n.name for n in view.graph.nodes if is_qdq(n, _DQ) and view.is_constant(n)}
    constant |= {n.name for n in view.graph.nodes if is_qdq(n, _Q) and n.input[0] in view.graph.constants}
    done = []
    for node in model.graph.node:
        scale, zero = _parameters(view.graph, node) if is_qdq(node) else (None, None)
        if scale is None or scale.size < 2 or node.name in constant:
            continue
        same = (scale == scale.flat[0]).all() and (zero is None or (zero == zero.flat[0]).all())
        if same:
            names = [_put(model, f"{node.input[1]}/one", scale.ravel()[0])]
            names += [] if zero is None else [_put(model, f"{node.input[2]}/one", zero.ravel()[0])]
            node.input[:] = [node.input[0], *names]
            done.append((node.name, f"one scale in place of {scale.size} equal ones"))
    return done


def _channel_scales(model: ModelProto, reader: Reader) -> Done:
    if opset_of(model) < OPSET_CHANNELS:
        return []
    view, done = view_of(model, reader), []
    found = {dq.name: (node, dq, axis) for node, dq, count, axis in weight_scales(view) if count == 1}
    for node, dequantize, axis in found.values():
        channels = view.bare.constants[node.input[1]].shape[axis]
        readers = view.graph.consumers.get(dequantize.output[0], [])
        alike = all(
            n.op_type == node.op_type and n.attribute == view.written(node).attribute for n in readers
        )
        source = view.graph.producers.get(dequantize.input[0])
        chain = [dequantize] + ([source] if source is not None and is_qdq(source, _Q) else [])
        alike = alike and (source is None or view.graph.sole_consumer(dequantize.input[0]) is not None)
        if channels < 2 or not alike or any(_parameters(view.graph, item)[0] is None for item in chain):
            continue
        for item in (n for n in model.graph.node if n.name in {part.name for part in chain}):
            scale, zero = _parameters(view.graph, item)
            spread = [np.full(channels, np.ravel(v)[0], v.dtype) for v in (scale, zero) if v is not None]
            names = [_put(model, f"{n}/channels", v) for n, v in zip(item.input[1:], spread, strict=True)]
            item.input[:] = [item.input[0], *names]
            _set_axis(item, axis)
        done.append((dequantize.name, f"its scale is written once for each of {channels} channels"))
    return done


def _set_axis(node: NodeProto, axis: int) -> None:
    kept = [item for item in node.attribute if item.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axis", axis)])


def _behind_relu(model: ModelProto, _: Reader) -> Done:
    """Conv, Q, DQ, Relu becomes Conv, Relu, Q, DQ: with a zero point of 0 the two commute, exactly."""
    done, graph = [], Graph(model)
    for quantize in [node for node in model.graph.node if is_qdq(node, _Q)]:
        source = graph.producers.get(quantize.input[0])
        dequantize = graph.sole_consumer(quantize.output[0])
        if source is None or source.op_type not in WEIGHTED or graph.sole_consumer(quantize.input[0]) is None:
            continue
        if dequantize is None or not is_qdq(dequantize, _DQ):
            continue
        relu = graph.sole_consumer(dequantize.output[0])
        pair = [_parameters(graph, node) for node in (quantize, dequantize)]
        zeros = [zero for _, zero in pair if zero is not None and zero.dtype == np.int8 and not zero.any()]
        scales = [scale for scale, _ in pair if scale is not None]
        if relu is None or relu.op_type != "Relu" or len(zeros) < 2 or len(scales) < 2:
            continue
        if not np.array_equal(scales[0], scales[1]):
            continue
        model.graph.node.remove(relu)
        result, relu.input[0] = relu.output[0], quantize.input[0]
        relu.output[0] = quantize.input[0] = f"{result}/float"
        dequantize.output[0] = result
        model.graph.node.insert(list(model.graph.node).index(quantize), relu)
        done.append((quantize.name, f"moved behind {relu.name!r}"))
        graph = Graph(model)
    return done


def _merge_pairs(model: ModelProto, _: Reader) -> Done:
    done: Done = []
    graph = Graph(model)
    seen: dict[tuple[Any, ...], str] = {}
    replaced: dict[str, str] = {}
    for node in graph.nodes:
        if not is_qdq(node):
            continue
        key = _key(graph, node, replaced.get(node.input[0], node.input[0]))
        source = graph.producers.get(replaced.get(node.input[0], node.input[0]))
        before = None if source is None or not is_qdq(source) else _key(graph, source, "")
        if (
            node.op_type == _Q
            and source is not None
            and is_qdq(source, _DQ)
            and before == _key(graph, node, "")
        ):
            first = replaced.get(source.input[0], source.input[0])
        else:
            first = seen.setdefault((node.op_type, *key), node.output[0])
        if first != node.output[0] and _read_instead(model, node.output[0], first):
            replaced[node.output[0]] = first
            if node.op_type == _Q:
                done.append((node.name, "merged with an equal one"))
    return done


def _key(graph: Graph, node: NodeProto, tensor: str) -> tuple[Any, ...]:
    """Return what makes two Q (or two DQ) nodes equal: what they read, and how."""
    values = [graph.constants.get(name) for name in node.input[1:]]
    told = [(v.dtype.str, v.shape, v.tobytes()) if v is not None else node.name for v in values]
    options = sorted(
        (a.name, a.SerializeToString()) for a in node.attribute if a.name != "axis" or _sized(values)
    )
    return (tensor, node.domain, tuple(told), tuple(options))


def _sized(values: list[NDArray[Any] | None]) -> bool:
    """Whether an axis matters: with one scale it does not."""
    return not values or values[0] is None or values[0].size > 1


def _average_pool(model: ModelProto, reader: Reader) -> Done:
    if not reader.dla:
        return []
    shapes, done = view_of(model, reader).graph, []
    for node in model.graph.node:
        shape = (
            shapes.shape(node.input[0]) if node.op_type == "GlobalAveragePool" and is_standard(node) else None
        )
        if shape is None or len(shape) != 4:
            continue
        window = [size for size in shape[2:] if isinstance(size, int) and size <= _WINDOW]
        if len(window) == 2:
            node.op_type = "AveragePool"
            node.attribute.append(helper.make_attribute("kernel_shape", window))
            done.append((node.name, f"an AveragePool over {window[0]}x{window[1]}"))
    return done


# In this order. The rule named is the one that the fix is for; it may satisfy others as well.
FIXES: dict[str, Callable[[ModelProto, Reader], Done]] = {
    "custom-op": _standard_domain,
    "int32-bias": _float_bias,
    "no-zero-point": _zero_points,
    "scale-size": _zero_sizes,
    "uint8": _signed,
    "activation-channels": _one_scale,
    "weight-tensor": _channel_scales,
    "output-quantized": _behind_relu,
    "repeated": _merge_pairs,
    "dla-op": _average_pool,
    "opset": write_opset,
    "ir-version": write_ir,
}
