"""Any ONNX network, brought into the one form that the quantizer is written for, or refused with the reason.

Functions are written out, sparse constants dense, constants no inputs, every node has a name of its own, no
tensor has a name that Q/DQ would need, and an opset that is too old is raised. It may import errors,
profile (for the least opset), engines, quant.graph and quant.large.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx.inliner import inline_local_functions

from edgetune.engines.onnxruntime import Feed, Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.profile import LEAST_OPSET
from edgetune.quant.graph import RANDOM_OPS, is_standard, opset_of, subgraphs
from edgetune.quant.large import fits, open_model

QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits", "DynamicQuantizeMatMul"),
    }
)
# Names behind a tensor's own that the renderings give.
_OURS = frozenset({"quantized", "dequantized", "scale", "zero_point", "float", "half"})
# What a dynamic dimension but the first is taken as, for comparing: large enough for most strides.
_DYNAMIC = 64
_CLOSE = 1e-3


def accept(model: ModelProto, opset: int = LEAST_OPSET) -> ModelProto:
    """Return a copy of a network that computes the same, in the form described above.

    Args:
        model: from anywhere, with its weights loaded.
        opset: the least that the result may have.

    Raises:
        ConfigError: it is quantized already, its weights lie elsewhere, its opset cannot be raised, or its
            names leave none for Q/DQ.
        ArtifactError: raising the opset changed what it computes.
    """
    _refuse_quantized(model)
    work = ModelProto()
    work.CopyFrom(model)
    for item in work.graph.initializer:
        if uses_external_data(item):
            raise ConfigError(
                f"the weights {item.name!r} lie in another file and are not loaded",
                hint="load the network by its path, with that file beside it: onnx.load(path)",
            )
    _write_dense(work)
    constant = {item.name for item in work.graph.initializer}
    fed = [value for value in work.graph.input if value.name not in constant]
    del work.graph.input[:]
    work.graph.input.extend(fed)
    # Before 4, every constant had to be an input.
    work.ir_version = max(work.ir_version, 4)
    if work.functions:
        work = _inlined(work)
    if opset_of(work) < opset:
        work = raise_opset(work, opset)
    name_nodes(work)
    _free_names(work)
    _learn_types(work)
    return work


def _refuse_quantized(model: ModelProto) -> None:
    nodes = list(all_nodes(model.graph))
    for function in model.functions:
        nodes += function.node
    for node in nodes:
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise ConfigError(
                f"the network is quantized already: node {node.name!r} is a {node.op_type}",
                hint="quantize the FP32 network that it was made from",
            )


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Give the nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def _write_dense(model: ModelProto) -> None:
    for item in model.graph.sparse_initializer:
        shape = tuple(item.dims)
        values, indices = numpy_helper.to_array(item.values), numpy_helper.to_array(item.indices)
        dense = np.zeros(shape, values.dtype)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        dense.reshape(-1)[places] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, item.values.name))
    del model.graph.sparse_initializer[:]


def _inlined(model: ModelProto) -> ModelProto:
    _refuse_large(model, "its functions cannot be written out")
    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"the network's functions cannot be written out: {_first_line(error)}",
            hint="export it again without functions",
        ) from error


def raise_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return a network with a later opset, checked on random input to compute the same.

    The check is left out where ONNX Runtime cannot run the network given, or not at the sizes chosen for
    dynamic dimensions, and where its results are random.

    Raises:
        ConfigError: ONNX's converter cannot do it.
        ArtifactError: the result computes something else.
    """
    was = f"the network has opset {opset_of(model)}, and {opset} is needed"
    hint = f"export it again with opset {opset} or later"
    _refuse_large(model, was)
    try:
        made = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(made)
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ConfigError(f"{was}; converting it failed: {_first_line(error)}", hint=hint) from error
    made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(made.opset_import))
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    if not _computes_the_same(model, made):
        raise ArtifactError(f"{was}; ONNX's converter made another network of it", hint=hint)
    return made


def _computes_the_same(model: ModelProto, made: ModelProto) -> bool:
    if any(node.op_type in RANDOM_OPS - {"Dropout"} for node in all_nodes(model.graph)):
        return True
    try:
        reference = open_model(model, exact=True)
        wanted = reference.run(_random_feed(reference))
    except (ArtifactError, ConfigError, StageError):
        return True  # said where the network is run on real inputs
    try:
        found = open_model(made, exact=True).run(_random_feed(reference))
    except (ArtifactError, ConfigError, StageError):
        return False
    return all(
        a.shape == b.shape
        and np.allclose(a, b, rtol=_CLOSE, atol=_CLOSE * float(np.abs(a).max(initial=0)), equal_nan=True)
        for a, b in zip(wanted, found, strict=True)
    )


def _random_feed(session: Session) -> Feed:
    noise = np.random.default_rng(0)
    feed = {}
    for spec in session.inputs:
        shape = [d if isinstance(d, int) else 1 if i == 0 else _DYNAMIC for i, d in enumerate(spec.shape)]
        feed[spec.name] = np.asarray(noise.standard_normal(shape)).astype(spec.dtype)
    return feed


def _refuse_large(model: ModelProto, why: str) -> None:
    if not fits(model):
        raise ConfigError(
            f"{why}, and above 2 GB ONNX cannot convert it",
            hint=f"export it again with opset {LEAST_OPSET} or later and without functions",
        )


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own, in place: the operator and its place in the file where it has none."""
    given = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        if not node.name or node.name in taken:
            while name in given or name in taken:
                name += "_"
        taken.add(name)
        node.name = name


def _free_names(model: ModelProto) -> None:
    """Rename tensors that are named as Q/DQ of other tensors will be, in place."""
    graph = model.graph
    public = {value.name for value in [*graph.input, *graph.output]}
    names = {item.name for item in graph.initializer} | public
    names.update(name for node in graph.node for name in [*node.input, *node.output])
    renamed = {}
    for name in sorted(names):
        stem, _, tail = name.rpartition("/")
        if tail not in _OURS or stem not in names:
            continue
        if name in public:
            raise ConfigError(
                f"{name!r} is an input or output, and the name that quantizing {stem!r} needs",
                hint="rename one of the two",
            )
        renamed[name] = f"{name}_"
        while renamed[name] in names:
            renamed[name] += "_"
        names.add(renamed[name])
    if renamed:
        for item in [*graph.initializer, *graph.value_info]:
            item.name = renamed.get(item.name, item.name)
        for node in all_nodes(graph):
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]


def _learn_types(model: ModelProto) -> None:
    """Ask ONNX Runtime what operators give that ONNX does not know, in place; nothing where it does not either."""
    known = {value.name for value in [*model.graph.value_info, *model.graph.output]}
    foreign = [name for node in model.graph.node if not is_standard(node) for name in node.output if name]
    asked = [name for name in foreign if name not in known]
    if not asked:
        return
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in asked)
    try:
        found = open_model(probe, exact=True).outputs
    except ArtifactError:
        return
    for spec in found:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        model.graph.value_info.append(helper.make_tensor_value_info(spec.name, kind, list(spec.shape)))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
