"""A model as one bipartite networkx graph: what it consists of, and the only place that edits it."""

from onnxslim.ir.graph.graph import Graph
from onnxslim.ir.graph.items import (
    CAPTURE,
    Array,
    Dim,
    DType,
    Node,
    Role,
    Shape,
    Use,
    Value,
    shapes_agree,
    type_name,
)

__all__ = [
    "CAPTURE",
    "Array",
    "DType",
    "Dim",
    "Graph",
    "Node",
    "Role",
    "Shape",
    "Use",
    "Value",
    "shapes_agree",
    "type_name",
]
