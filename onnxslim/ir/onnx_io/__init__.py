"""ModelProto ⇄ Graph: reads and writes ONNX files without losing what it does not understand.

`read` and `from_proto` give a `Graph`; `write`, `to_bytes` and `to_proto` give it back. An
untouched model comes out as the same model: nodes in their order, names, attributes, initialiser
bytes, opsets, subgraph bodies, local functions, metadata and doc strings.
"""

from onnxslim.ir.onnx_io.reader import add_node_proto, fill_body, from_proto, model_file, read
from onnxslim.ir.onnx_io.types import tensor_type, type_proto
from onnxslim.ir.onnx_io.writer import body_proto, node_proto, to_bytes, to_proto, write

__all__ = [
    "add_node_proto",
    "body_proto",
    "fill_body",
    "from_proto",
    "model_file",
    "node_proto",
    "read",
    "tensor_type",
    "to_bytes",
    "to_proto",
    "type_proto",
    "write",
]
