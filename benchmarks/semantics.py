"""Small networks, and changes of meaning: attribute values, shapes, orders, sizes in constants, symbols.

Unlike the damage of benchmarks/mutations.py, most of what comes out is still a model that ONNX Runtime runs, so that
its outputs can be compared. Each mutation takes a source of chance and edits a ModelProto; one that finds nothing to
change leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from mutations import a_graph, a_node, some
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from rewirings import REWIRINGS, Mutation, opset_of

__all__ = ["SEMANTIC"]

SMALL = (-3, -2, -1, 0, 1, 2, 3, 4, 5, 8, 16)
RARE = (-(1 << 31), (1 << 31) - 1, 1 << 20, 1 << 40, -(1 << 63), (1 << 63) - 1)
FLOATS = (0.0, -1.0, 0.5, 1.0, 6.0, 1e-30, 1e30, float("inf"), float("nan"))
WORDS = (
    b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"NOTSET", b"reflect", b"edge", b"nearest", b"linear", b"cubic", b"floor",
    b"asymmetric", b"align_corners", b"half_pixel", b"DCR", b"CRD", b"reverse", b"nonsense",
)  # fmt: skip


def a_number(chance: Random) -> int:
    return chance.choice(SMALL if chance.random() < 0.97 else RARE)


def an_initializer(chance: Random, model: onnx.ModelProto, kinds: Sequence[int]) -> TensorProto | None:
    """One of these element types, of the graph or of a Constant."""
    found = [t for t in model.graph.initializer if t.data_type in kinds]
    found += [a.t for n in model.graph.node for a in n.attribute if a.HasField("t") and a.t.data_type in kinds]
    picked: TensorProto | None = some(chance, found)
    return picked


def array_of(tensor: TensorProto) -> np.ndarray[Any, Any] | None:
    try:
        return np.array(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, NotImplementedError):
        return None


def put(tensor: TensorProto, array: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


# ---------------------------------------------------------------- attributes


def attribute_nudged(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if n.attribute])
    if node is None:
        return
    attribute = chance.choice(node.attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = a_number(chance)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = chance.choice(FLOATS)
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        position = chance.randrange(len(attribute.ints))
        kind = chance.randrange(5)
        if kind == 0:
            numbers = list(attribute.ints)
            chance.shuffle(numbers)
            attribute.ints[:] = numbers
        elif kind == 1:
            attribute.ints.append(a_number(chance))
        elif kind == 2:
            del attribute.ints[position]
        else:
            attribute.ints[position] = a_number(chance)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = chance.choice(WORDS)


def attribute_dropped(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if n.attribute])
    if node is not None:
        del node.attribute[chance.randrange(len(node.attribute))]


def attribute_given(chance: Random, model: onnx.ModelProto) -> None:
    """One that the op's schema has, and the node has not."""
    node = a_node(chance, model)
    if node is None or node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, min(opset_of(model), 21))
    except onnx.defs.SchemaError:
        return
    there = {a.name for a in node.attribute}
    name = some(chance, sorted(n for n in schema.attributes if n not in there))
    if name is None:
        return
    kind = schema.attributes[name].type
    values: dict[Any, Any] = {
        onnx.defs.OpSchema.AttrType.INT: a_number(chance),
        onnx.defs.OpSchema.AttrType.FLOAT: chance.choice(FLOATS),
        onnx.defs.OpSchema.AttrType.INTS: [a_number(chance) for _ in range(chance.choice((1, 2, 4)))],
        onnx.defs.OpSchema.AttrType.STRING: chance.choice(("SAME_UPPER", "VALID", "reflect", "tanh", "DCR")),
    }
    if kind in values:
        node.attribute.append(helper.make_attribute(name, values[kind]))


# ---------------------------------------------------------------- constants


def size_in_a_constant(chance: Random, model: onnx.ModelProto) -> None:
    """A target of Reshape, axes, limits of Slice, amounts of Pad, indices."""
    tensor = an_initializer(chance, model, (TensorProto.INT64, TensorProto.INT32))
    array = None if tensor is None else array_of(tensor)
    if tensor is not None and array is not None and array.size:
        flat = array.reshape(-1)
        flat[chance.randrange(flat.size)] = np.clip(
            a_number(chance), np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
        )
        put(tensor, array)


def length_of_a_constant(chance: Random, model: onnx.ModelProto) -> None:
    tensor = an_initializer(chance, model, (TensorProto.INT64, TensorProto.INT32))
    array = None if tensor is None else array_of(tensor)
    if tensor is not None and array is not None and array.ndim == 1:
        put(
            tensor,
            array[:-1] if chance.random() < 0.5 else np.append(array, np.array(chance.choice(SMALL), array.dtype)),
        )


def shape_of_a_weight(chance: Random, model: onnx.ModelProto) -> None:
    tensor = an_initializer(chance, model, (TensorProto.FLOAT,))
    array = None if tensor is None else array_of(tensor)
    if tensor is None or array is None:
        return
    kind = chance.randrange(6)
    if kind == 0:
        array = array.transpose(chance.sample(range(array.ndim), array.ndim))
    elif kind == 1:
        array = array[None]
    elif kind == 2 and array.ndim:
        array = array[..., None]
    elif kind == 3 and array.ndim and array.shape[0] > 1:
        array = array[: chance.randrange(array.shape[0] + 1)]
    elif kind == 4:
        array = array.reshape(-1)
    elif array.ndim:
        array = np.repeat(array, 2, axis=chance.randrange(array.ndim))
    put(tensor, array)


def numbers_of_a_weight(chance: Random, model: onnx.ModelProto) -> None:
    tensor = an_initializer(chance, model, (TensorProto.FLOAT,))
    array = None if tensor is None else array_of(tensor)
    if tensor is None or array is None or not array.size:
        return
    kind = chance.randrange(6)
    with np.errstate(over="ignore"):
        if kind < 3:
            array = array * np.float32((0.0, 1e-30, 1e30)[kind])
        elif kind == 3:
            array = -array
        else:
            array.reshape(-1)[chance.randrange(array.size)] = np.float32(chance.choice(FLOATS))
    put(tensor, array)


def equal_rows(chance: Random, model: onnx.ModelProto) -> None:
    tensor = an_initializer(chance, model, (TensorProto.FLOAT,))
    array = None if tensor is None else array_of(tensor)
    if tensor is not None and array is not None and array.ndim and array.size:
        axis = chance.randrange(array.ndim)
        put(tensor, np.broadcast_to(np.take(array, [0], axis), array.shape))


def constant_elsewhere(chance: Random, model: onnx.ModelProto) -> None:
    """An initialiser becomes a Constant, an input with a default, half precision behind a Cast, or an Identity's."""
    graph = model.graph
    tensor = some(chance, graph.initializer)
    if tensor is None:
        return
    kept = TensorProto.FromString(tensor.SerializeToString())
    kind = chance.randrange(4)
    if kind == 0:
        graph.initializer.remove(tensor)
        node = helper.make_node("Constant", [], [kept.name], value=kept)
    elif kind == 1:
        graph.input.append(helper.make_tensor_value_info(kept.name, kept.data_type, list(kept.dims)))
        return
    elif kind == 2 and kept.data_type == TensorProto.FLOAT:
        array = array_of(kept)
        if array is None:
            return
        with np.errstate(over="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{kept.name}_half"))
        node = helper.make_node("Cast", [tensor.name], [kept.name], to=TensorProto.FLOAT)
    else:
        tensor.name = f"{kept.name}_source"
        node = helper.make_node("Identity", [tensor.name], [kept.name])
    graph.node.insert(0, node)


# ---------------------------------------------------------------- orders


def inputs_swapped(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if len(n.input) > 1])
    if node is not None:
        i, j = chance.sample(range(len(node.input)), 2)
        node.input[i], node.input[j] = node.input[j], node.input[i]


def outputs_swapped(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if len(n.output) > 1])
    if node is not None:
        names = list(node.output)
        chance.shuffle(names)
        node.output[:] = names


def rows_shuffled(chance: Random, model: onnx.ModelProto) -> None:
    """Of what has no order that means anything."""
    rows: Any = chance.choice((model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output))
    kept = [type(row).FromString(row.SerializeToString()) for row in rows]
    chance.shuffle(kept)
    del rows[:]
    rows.extend(kept)


def input_shared(chance: Random, model: onnx.ModelProto) -> None:
    """A node reads what another one reads."""
    graph = a_graph(chance, model)
    node, other = some(chance, [n for n in graph.node if n.input]), some(chance, [n for n in graph.node if n.input])
    if node is not None and other is not None:
        node.input[chance.randrange(len(node.input))] = chance.choice(list(other.input))


def input_left_out(chance: Random, model: onnx.ModelProto) -> None:
    node = some(chance, [n for n in model.graph.node if len(n.input) > 1])
    if node is not None:
        position = chance.randrange(1, len(node.input))
        if chance.random() < 0.5:
            node.input[position] = ""
        else:
            del node.input[position:]


# ---------------------------------------------------------------- symbols, declared shapes


def declared(chance: Random, model: onnx.ModelProto) -> Any:
    rows = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return some(chance, [v for v in rows if v.type.tensor_type.HasField("shape")])


def symbols_renamed(chance: Random, model: onnx.ModelProto) -> None:
    """Every free axis gets the same symbol, or one of two, as exporters write them."""
    names = chance.choice((("?",), ("None",), ("N",), ("a", "b"), ("batch", "0"), ("-1",)))
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_param = chance.choice(names)


def axes_freed(chance: Random, model: onnx.ModelProto) -> None:
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if chance.random() < 0.5:
                dim.dim_param = chance.choice(("N", f"axis{axis}", "?"))
    if chance.random() < 0.5:
        del model.graph.value_info[:]


def axis_fixed(chance: Random, model: onnx.ModelProto) -> None:
    info = declared(chance, model)
    if info is not None and info.type.tensor_type.shape.dim:
        dim = chance.choice(info.type.tensor_type.shape.dim)
        dim.dim_value = abs(a_number(chance)) % (1 << 31)


def shape_undeclared(chance: Random, model: onnx.ModelProto) -> None:
    info = declared(chance, model)
    if info is not None:
        info.type.tensor_type.ClearField("shape")


def rank_declared_wrong(chance: Random, model: onnx.ModelProto) -> None:
    info = declared(chance, model)
    if info is not None:
        shape = info.type.tensor_type.shape
        if shape.dim and chance.random() < 0.5:
            del shape.dim[chance.randrange(len(shape.dim))]
        else:
            shape.dim.add(dim_value=1)


def stale_types(chance: Random, model: onnx.ModelProto) -> None:
    """Inner types are written down; then the size of the input changes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    info = some(chance, model.graph.input)
    dims = info.type.tensor_type.shape.dim if info is not None else []
    if dims:
        chance.choice(dims).dim_value = chance.choice((1, 2, 3, 4, 6, 10))


SEMANTIC: Mapping[str, Mutation] = {
    f.__name__: f
    for f in (
        attribute_nudged, attribute_dropped, attribute_given, size_in_a_constant, length_of_a_constant,
        shape_of_a_weight, numbers_of_a_weight, equal_rows, constant_elsewhere, inputs_swapped, outputs_swapped,
        rows_shuffled, input_shared, input_left_out, symbols_renamed, axes_freed, axis_fixed, shape_undeclared,
        rank_declared_wrong, stale_types, *REWIRINGS,
    )
}  # fmt: skip
