"""What the criterion taylor is made of is the same whether a model ends in its logits or in their softmax."""

from __future__ import annotations

import numpy as np

from onnxslim.builders import small_cnn
from onnxslim.ir.graph import Graph
from onnxslim.pruning.taylor import gradient_products
from onnxslim.stages.base import prepared


def with_softmax(graph: Graph) -> Graph:
    graph = graph.copy()
    output = graph.outputs[0]
    graph.remove_output(output)
    result = graph.op("Softmax", output, name="probabilities", axis=1)
    graph.set_type(result, output.dtype, output.shape)
    graph.add_output(result)
    return graph


def test_a_softmax_changes_no_gradient() -> None:
    plain = prepared(small_cnn((4,), classes=3))
    rng = np.random.default_rng(0)
    feeds = {plain.inputs[0].name: rng.normal(size=(6, 1, 8, 8)).astype(np.float32)}
    batches = [(feeds, np.arange(6) % 3)]
    (expected,), (found,) = (gradient_products(g, batches, 6, 1) for g in (plain, with_softmax(plain)))
    assert list(found) == list(expected)
    for name, products in expected.items():
        np.testing.assert_array_equal(found[name], products)
