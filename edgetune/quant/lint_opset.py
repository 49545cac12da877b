"""Writing an older opset or IR version into a file, where everything in it means the same there.

ONNX's own converter rewrites operators; here nothing is rewritten: an operator either is the same in both
versions, or differs only in what the file does not use. It may import quant.graph and quant.lint_view.
"""

from typing import Any

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from edgetune.quant.graph import is_standard, opset_of
from edgetune.quant.lint_model import needed_ir
from edgetune.quant.lint_view import Reader, element_types, is_qdq

# Their meaning changed and their form did not: scale and bias per group, then per channel.
_CHANGED = frozenset({"GroupNormalization"})
# From here on Q/DQ takes FP16 scales.
_HALF_SCALES = 19
_NEWER_TYPES = {
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 9),
    **dict.fromkeys(("INT4", "UINT4"), 10),
    "FLOAT4E2M1": 11,
}


def write_opset(model: ModelProto, reader: Reader) -> list[tuple[str, str]]:
    """Write the reader's newest opset, if every operator means the same there."""
    found, wanted = opset_of(model), reader.opset_max
    if found <= wanted:
        return []
    nodes = list(_all_nodes(model.graph))
    if not all(_same(node, found, wanted) for node in nodes if is_standard(node)):
        return []
    types = element_types(model)
    half = any(is_qdq(n) and types.get(n.input[1]) == TensorProto.FLOAT16 for n in nodes)
    if half and wanted < _HALF_SCALES:
        return []
    for node in nodes:
        if is_standard(node):
            _drop_defaults(node, wanted)
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = wanted
    return [("", f"opset {found} written as {wanted}: every operator means the same there")]


def write_ir(model: ModelProto, reader: Reader) -> list[tuple[str, str]]:
    """Write the IR version that was made sure of, if nothing in the file is newer."""
    if reader.typing == "cpu":
        return []  # ONNX Runtime here reads what the onnx package here writes
    found, wanted = model.ir_version, needed_ir(model, reader)
    used = {item.data_type for item in model.graph.initializer} | set(element_types(model).values())
    names = {name: getattr(TensorProto, name, -1) for name in _NEWER_TYPES}
    least = max((_NEWER_TYPES[name] for name, number in names.items() if number in used), default=0)
    if found <= wanted or least > wanted or model.functions:
        return []
    model.ir_version = wanted
    return [("", f"IR version {found} written as {wanted}")]


def _all_nodes(graph: onnx.GraphProto) -> list[NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for item in node.attribute:
            inner = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
            found += [deep for part in inner for deep in _all_nodes(part)]
    return found


def _schema(node: NodeProto, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _same(node: NodeProto, newer: int, older: int) -> bool:
    """Say whether a node means the same in an older opset, once attributes at their defaults are left out."""
    new, old = _schema(node, newer), _schema(node, older)
    if new is None or old is None:
        return False
    if new.since_version == old.since_version:
        return True
    if node.op_type in _CHANGED or len(node.input) > old.max_input or len(node.output) > old.max_output:
        return False
    given = {item.name for item in node.attribute}
    for name, kind in old.attributes.items():
        theirs = new.attributes.get(name)
        if name not in given and (theirs is None or theirs.default_value != kind.default_value):
            return False
    return all(item.name in old.attributes or _is_default(item, new) for item in node.attribute)


def _is_default(item: AttributeProto, schema: Any) -> bool:
    kind = schema.attributes.get(item.name)
    if kind is None or kind.default_value.type == AttributeProto.UNDEFINED:
        return False
    return bool(helper.get_attribute_value(item) == helper.get_attribute_value(kind.default_value))


def _drop_defaults(node: NodeProto, older: int) -> None:
    """Leave out attributes that the older version does not have; they are at their defaults."""
    old = _schema(node, older)
    kept = [item for item in node.attribute if item.name in old.attributes]
    if len(kept) < len(node.attribute):
        del node.attribute[:]
        node.attribute.extend(kept)
