"""The step graph as a whole: whatever the layout, the verifier sees every node of it, with types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxslim.errors import UnsupportedError, VerifyError
from onnxslim.ir.graph import DType, Graph, Role
from onnxslim.ir.shapes import infer_shapes
from onnxslim.ir.verify import verify
from onnxslim.training import step as module
from onnxslim.training.parameters import mark_parameters
from onnxslim.training.step import LAYOUTS, Layout, StepOptions, build_step
from passes.distill import CrossEntropy
from passes.layout import ShapePorts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_verifier_sees_every_node(
    layout: Layout, student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int | None]] = []

    def spy(graph: Graph, since: int | None = None) -> None:
        seen.append((len(graph.nodes()), since))
        verify(graph, since)

    monkeypatch.setattr(module, "verify", spy)
    step = build_step(student(True), 8, StepOptions((CrossEntropy(),), layout=layout))
    assert seen == [(len(step.graph.nodes()), None)]


def test_a_wrong_type_far_from_what_a_pass_edited_is_found(
    student: Callable[[bool], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a rule had left a value with another type than its node makes, after which no pass comes by."""
    shape_ports = ShapePorts.run

    def spoil(self: ShapePorts, graph: Graph, context: object) -> object:
        outcome = shape_ports(self, graph, context)  # type: ignore[arg-type]
        loss = graph.producer(graph.outputs[0])
        assert loss is not None
        graph.operand(loss, 0).dtype = DType.DOUBLE  # past the journal of edits
        return outcome

    monkeypatch.setattr(ShapePorts, "run", spoil)
    with pytest.raises(VerifyError, match="expected DOUBLE"):
        build_step(student(False), 8, StepOptions((CrossEntropy(),)))


def test_a_parameter_that_holds_the_batch_size_is_named() -> None:
    """Rows that are equal stand for one, where the batch is another: nothing is left to be trained."""
    graph = Graph()
    x = graph.add_input("x", DType.FLOAT, (3, 4))
    rows = graph.add_constant("rows", np.full((3, 4), 0.5, np.float32), role=Role.PARAMETER)
    weight = graph.add_constant("w", np.ones((8, 2), np.float32), role=Role.PARAMETER)
    graph.add_output(graph.op("MatMul", graph.op("Concat", x, rows, axis=1), weight, name="y"))
    infer_shapes(graph)
    mark_parameters(graph)
    with pytest.raises(UnsupportedError, match="has the model's batch size in its shape"):
        build_step(graph, 5, StepOptions((CrossEntropy(),)))
