"""NameNodes: every node has a name of its own, and what is unique already stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from onnxslim.ir.onnx_io import from_proto, to_bytes, to_proto
from onnxslim.run import set_batch, simplify
from onnxslim.runtime.ort_format import write_ort
from onnxslim.runtime.session import Session
from passes.deploy import NameNodes


def test_missing_and_repeated_names_are_replaced_and_others_stay() -> None:
    graph = from_proto(
        onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        main (float[2] x, bool flag) => (float[2] y) {
            a = Abs(x)
            b = Abs(a)
            c = Abs(b)
            d = Neg(c)
            y = If (flag) <
                then_branch = yes () => (float[2] t) { t = Neg(d) },
                else_branch = no () => (float[2] e) { e = Abs(d) }
            >
        }
    """)
    )
    nodes = graph.nodes()
    graph.set_name(nodes[1], "Abs", "kept")
    graph.set_name(nodes[2], "twin")
    graph.set_name(nodes[3], "twin")
    assert NameNodes()(graph).rewrites == 5
    assert [node.name for node in graph.nodes()] == ["Abs_2", "Abs", "twin", "Neg", "If"]
    assert graph.nodes()[1].doc == "kept"
    branches = [attribute.g.node[0].name for attribute in to_proto(graph).graph.node[4].attribute]
    assert branches == ["Neg_2", "Abs_3"]
    assert NameNodes()(graph).rewrites == 0


def packed_projections() -> onnx.ModelProto:
    """Two packed q/k/v projections without node names: ONNX Runtime 1.19.2 makes two Splits of one name of them."""
    rng, constants, nodes = np.random.default_rng(0), [], []
    for layer, x in enumerate(("x", "y0")):
        arrays = {f"w{layer}": rng.normal(size=(8, 24)).astype("f"), f"s{layer}": np.array([0, 0, 3, 8])}
        arrays |= {f"i{layer}{part}": np.array(part) for part in range(3)}
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes += [
            helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Reshape", [f"m{layer}", f"s{layer}"], [f"r{layer}"]),
            *(
                helper.make_node("Gather", [f"r{layer}", f"i{layer}{part}"], [f"g{layer}{part}"], axis=2)
                for part in range(3)
            ),
            helper.make_node("Sum", [f"g{layer}{part}" for part in range(3)], [f"y{layer}"]),
        ]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4, 8]) for name in ("x", "y1")]
    graph = helper.make_graph(nodes, "packed", info[:1], info[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_simplify_gives_becomes_an_ort_file(tmp_path) -> None:
    graph = from_proto(packed_projections())
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 4, 8)).astype("f")}
    expected = Session(graph).run(feeds)["y1"]  # a session names them too
    for number, made in enumerate((simplify(graph).graph, set_batch(graph, "any"))):
        names = [node.name for node in made.nodes()]
        assert "" not in names
        assert len(set(names)) == len(names)
        files = write_ort(to_bytes(made), tmp_path, "amd64", name=f"packed{number}")
        found = Session(files.model.read_bytes()).run(feeds)["y1"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32, another order of summation
