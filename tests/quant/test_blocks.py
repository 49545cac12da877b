"""Where networks are cut, and inputs on their way through them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper

from edgetune.quant.blocks import Passage, alive, cut
from edgetune.quant.graph import Graph, reads
from edgetune.quant.prepare import prepare
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]


def convs(node: NodeProto) -> bool:
    return node.op_type == "Conv"


def found(graph: Graph, most: int = 12) -> list[tuple[list[str], tuple[str, ...]]]:
    return [([node.name for node in b.nodes], b.ends) for b in cut(graph, convs, most)]


def test_a_chain_is_cut_after_every_node_that_counts(net: Nets) -> None:
    n = net()
    a = n.conv("x", name="a")
    b = n.conv(n.op("Relu", a, name="relu"), name="b")
    c = n.op("Relu", b, name="last")
    graph = prepare(n.model(n.conv(c, name="c")))
    assert found(graph) == [
        (["a"], ("a_out",)),
        (["relu", "b"], ("b_out",)),
        (["last", "c"], ("c_out",)),
    ]


def test_a_residual_is_one_block(net: Nets) -> None:
    n = net()
    a = n.conv("x", name="a")
    b = n.conv(n.op("Relu", n.conv(a, name="b1"), name="r"), name="b2")
    graph = prepare(n.model(n.conv(n.op("Add", a, b, name="add"), name="c")))
    assert found(graph) == [
        (["a"], ("a_out",)),
        (["b1", "r", "b2", "add"], ("add_out",)),
        (["c"], ("c_out",)),
    ]


def test_branches_of_a_concat_are_one_block(net: Nets) -> None:
    n = net()
    a, b = n.conv("x", name="a"), n.conv("x", name="b")
    graph = prepare(n.model(n.conv(n.op("Concat", a, b, axis=1, name="both"), into=32, name="c")))
    assert found(graph) == [(["a", "b", "both"], ("both_out",)), (["c"], ("c_out",))]


def test_several_outputs_end_the_last_block_together(net: Nets) -> None:
    n = net()
    a = n.conv("x", name="a")
    b, c = n.conv(a, name="b"), n.conv(a, name="c")
    assert found(prepare(n.model(b, c))) == [(["a"], ("a_out",)), (["b", "c"], ("b_out", "c_out"))]


def test_two_inputs_and_no_place_to_cut(net: Nets) -> None:
    n = net()
    a = n.conv("x", name="a")
    for place in range(5):
        a = n.op("Mul", n.conv(a, name=f"b{place}"), "y", name=f"m{place}")
    model = n.model(a)
    model.graph.input.append(helper.make_tensor_value_info("y", 1, [1, 16, 8, 8]))
    graph = prepare(model)
    assert [(len(nodes), set(ends)) for nodes, ends in found(graph)] == [(11, {"m4_out"})]
    assert [ends for _, ends in found(graph, most=3)] == [("y", "b1_out"), ("y", "b4_out")]


def test_without_nodes_that_count_there_are_no_blocks(net: Nets) -> None:
    n = net()
    assert cut(prepare(n.model(n.op("Relu", "x"))), convs) == []


def test_alive_is_what_later_nodes_read(net: Nets) -> None:
    n = net()
    a = n.conv("x", name="a")
    b = n.op("Relu", a, name="b")
    graph = prepare(n.model(n.op("Add", a, b, name="add"), b))
    assert alive(graph) == [("x",), ("a_out",), ("a_out", "b_out"), ("b_out", "add_out")]
    for place, names in enumerate(alive(graph)):
        later = {name for node in graph.nodes[place:] for name in reads(node)}
        assert set(names) >= later - graph.constants.keys() - {
            name for node in graph.nodes[place:] for name in node.output
        }


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_passage_arrives_where_a_run_does(net: Nets, rows: int) -> None:
    n = net()
    a = n.conv("x")
    graph = prepare(n.model(n.conv(n.op("Add", a, n.conv(n.op("Relu", a))))))
    x = torch.from_numpy(n.inputs(5))
    whole = TorchGraph(graph.model)
    passage = Passage(whole, {"x": x}, rows)
    for block in cut(graph, convs):
        looked = passage.look(block.nodes, block.ends)
        passage.go(block.nodes, block.ends)
        assert all(set(part) == set(block.ends) for part in passage.parts)
        for first, second in zip(looked, passage.parts, strict=True):
            assert all(torch.equal(first[name], second[name]) for name in first)
    (name,) = graph.outputs
    made = torch.cat([part[name] for part in passage.parts])
    torch.testing.assert_close(made, whole.run({"x": x})[name], rtol=1e-4, atol=1e-4)


def test_what_does_not_fill_a_static_batch_is_left_out(net: Nets) -> None:
    n = net(batch=2)
    flat = n.op("Reshape", n.conv("x"), n.constant(np.array([16, 2, 64])))
    model = n.model(n.op("Softmax", n.op("Transpose", flat, perm=[2, 1, 0]), axis=0))
    whole = TorchGraph(prepare(model).model)
    assert whole.at_once(8) == 2
    passage = Passage(whole, {"x": torch.from_numpy(n.inputs(5))}, 2)
    assert [len(part["x"]) for part in passage.parts] == [2, 2]
