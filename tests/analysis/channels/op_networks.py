"""The table of `op_cases` as networks, one for each rank, each case a branch of its own."""

from __future__ import annotations

from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import from_proto, to_proto
from tests.analysis.channels.op_cases import RANKS, SIZES, Branch, Case, axis_names, cases
from tests.passes.prune.conftest import Net

CASES = list(cases())
"""Those that are alike at every rank are tried at all of them without shapes in the file, and with them at one each."""
Part = tuple[Case, Branch, list[str]]
"""A case, the branch that it is, and the outputs of that."""


def network(rank: int, free: str, opset: int) -> tuple[Graph, list[Part]]:
    """The graph as it is read from a file, and its parts. The file gives shapes where the batch alone is free, and
    none where all sizes are."""
    net = Net(*(name if free == "all" or name == "N" else SIZES[name] for name in axis_names(rank)), 3)
    net.graph.opsets.update({"": opset, "com.microsoft": 1, "onnxslim": 1})
    parts, outputs = [], []
    for place, case in enumerate(CASES):
        left_out = case.merges if free == "all" else case.alike and rank != RANKS[place % len(RANKS)]
        if rank in case.ranks and case.opset == opset and not left_out:
            branch = Branch(net, f"{case.op}.{place}", case.op, rank, place)
            made = case.build(branch)
            outputs += made
            parts.append((case, branch, [value.name for value in made]))
    proto = to_proto(net.finish(*outputs))
    if free == "all":
        del proto.graph.value_info[:]
    return from_proto(proto), parts
