"""`FoldPad`: zeros that a Pad adds before a convolution become the convolution's own padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.ir.graph import Graph, Node
from onnxslim.ir.ops import given_numbers, is_left_out, padding
from onnxslim.ir.rewrite import Context, LocalPass

__all__ = ["FoldPad"]


@dataclass(frozen=True)
class FoldPad(LocalPass):
    """Conv(Pad(x, p), w; pads q)  →  Conv(x, w; pads p + q)

    Refuses, naming the Pad: a mode other than constant, a value other than 0, computed or negative amounts,
    padding of the batch or the channels, and a convolution with SAME padding, which depends on x's size.

    Contract: equal to 1e-5 of the largest output (ONNX Runtime may choose another kernel).
    """

    name: ClassVar[str] = "fold_pad"
    ops: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> int | str:
        convs = [use.node for use in graph.uses(graph.result(node)) if use.slot == 0 and _is_conv(use.node)]
        found = [_fold(graph, node, conv) for conv in convs]
        return next((why for why in found if why is not None), len(found))


def _is_conv(node: Node) -> bool:
    return node.op == "Conv" and not node.domain


def _fold(graph: Graph, pad: Node, conv: Node) -> str | None:
    weight = graph.operand(conv, 1)
    if weight.shape is None:
        return f"the rank of {conv} is not known"
    amounts = _spatial(graph, pad, len(weight.shape))
    if isinstance(amounts, str):
        return amounts
    if conv.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{conv} after it pads by itself ({conv.attr('auto_pad')})"
    own = conv.attr("pads") or [0] * len(amounts)
    graph.set_attribute(conv, "auto_pad", None)
    graph.set_attribute(conv, "pads", [a + b for a, b in zip(amounts, own)])
    graph.set_input(conv, 0, graph.operand(pad, 0))
    if not graph.is_used(graph.result(pad)):
        graph.remove_node(pad)
    return None


def _spatial(graph: Graph, pad: Node, rank: int) -> list[int] | str:
    """The amounts as a convolution writes them, begins before ends; or why it cannot."""
    if pad.attr("mode", "constant") != "constant":
        return f"its mode is {pad.attr('mode')}"
    number = given_numbers(graph, pad, "value", 2)
    if not is_left_out(graph, pad, "value", 2) and (number is None or number.any()):
        return "it pads with something else than 0"
    added = padding(graph, pad, rank)
    if added is None:
        return "its amounts or axes are computed"
    if min(min(amounts) for amounts in added) < 0:
        return "it cuts"
    if any(map(any, added[:2])):
        return "it pads the batch or the channels"
    return [begin for begin, _ in added[2:]] + [end for _, end in added[2:]]
