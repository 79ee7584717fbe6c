"""The step graph as a whole: whatever the layout, the verifier sees every node of it, with types."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxslim.errors import VerifyError
from onnxslim.graph import DType, Graph
from onnxslim.training import step as module
from onnxslim.training.step import LAYOUTS, Layout, StepOptions, build_step
from onnxslim.verify import verify
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
