"""Ways to damage a model, for benchmarks/fuzz.py and the tests: each takes a source of chance and edits a ModelProto.

A model that lacks what a mutation is about stays as it is. External files are those that benchmarks/fuzz.py lays out:
one inside the folder, and ways out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import onnx
from nesting import nested_functions
from onnx import AttributeProto, TensorProto, helper

__all__ = ["LOCATIONS", "STRUCTURAL"]

INTEGERS = (0, 1, -1, 2, 7, -(1 << 31), (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63))
LOCATIONS = ("data.bin", "../secret.bin", "/etc/passwd", "link.bin", "door/secret.bin", "sub/../../secret.bin",
             "C:\\secret.bin", "", "a\0b", "missing.bin", ".", "pipe", "model.onnx", "n" * 5000)  # fmt: skip
Mutation = Callable[[Random, onnx.ModelProto], None]


# ---------------------------------------------------------------- what there is to damage


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(body)


def some(chance: Random, things: Any) -> Any:
    """One of them, or None where there is none."""
    listed = list(things)
    return chance.choice(listed) if listed else None


def a_graph(chance: Random, model: onnx.ModelProto) -> onnx.GraphProto:
    listed = list(graphs(model.graph))
    return listed[0] if chance.random() < 0.6 else chance.choice(listed)


def a_node(chance: Random, model: onnx.ModelProto) -> onnx.NodeProto | None:
    nodes = [n for g in graphs(model.graph) for n in g.node] + [n for f in model.functions for n in f.node]
    found: onnx.NodeProto | None = some(chance, nodes)
    return found


def a_name(chance: Random, graph: onnx.GraphProto) -> str:
    names = [n for node in graph.node for n in (*node.input, *node.output)] + [v.name for v in graph.input]
    names += [t.name for t in graph.initializer]
    return chance.choice([*names, "", "nowhere"])


def a_tensor(chance: Random, model: onnx.ModelProto) -> TensorProto | None:
    tensors = [t for g in graphs(model.graph) for t in g.initializer]
    tensors += [s.values for g in graphs(model.graph) for s in g.sparse_initializer]
    tensors += [s.indices for g in graphs(model.graph) for s in g.sparse_initializer]
    tensors += [a.t for g in graphs(model.graph) for n in g.node for a in n.attribute if a.HasField("t")]
    found: TensorProto | None = some(chance, tensors)
    return found


def an_attribute(chance: Random, model: onnx.ModelProto) -> AttributeProto | None:
    found: AttributeProto | None = some(chance, [a for g in graphs(model.graph) for n in g.node for a in n.attribute])
    return found


def an_info(chance: Random, model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    listed = [v for g in graphs(model.graph) for v in (*g.input, *g.output, *g.value_info)]
    found: onnx.ValueInfoProto | None = some(chance, listed)
    return found


def an_integer(chance: Random) -> int:
    return chance.choice(INTEGERS) if chance.random() < 0.7 else chance.randint(-5, 5)


def rows_of(chance: Random, graph: onnx.GraphProto) -> Any:
    """A repeated field of the graph that is not empty; None where all are."""
    fields = (graph.node, graph.input, graph.output, graph.initializer, graph.value_info)
    return some(chance, [rows for rows in fields if len(rows)])


# ---------------------------------------------------------------- names and edges


def rename_input(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    node = some(chance, [n for n in graph.node if n.input])
    if node is not None:
        node.input[chance.randrange(len(node.input))] = a_name(chance, graph)


def rename_output(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    node = some(chance, [n for n in graph.node if n.output])
    if node is not None:
        node.output[chance.randrange(len(node.output))] = a_name(chance, graph)


def rename_row(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    row = some(chance, (*graph.input, *graph.output, *graph.initializer, *graph.value_info))
    if row is not None:
        row.name = a_name(chance, graph)


def missing_producer(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    if graph.node:
        del graph.node[chance.randrange(len(graph.node))]


def duplicate_producer(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    node = some(chance, graph.node)
    if node is not None:
        graph.node.append(node)


def cycle(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    node, later = some(chance, [n for n in graph.node if n.input]), some(chance, [n for n in graph.node if n.output])
    if node is not None and later is not None:
        node.input[chance.randrange(len(node.input))] = later.output[0]


def remove_row(chance: Random, model: onnx.ModelProto) -> None:
    rows = rows_of(chance, a_graph(chance, model))
    if rows is not None:
        del rows[chance.randrange(len(rows))]


def duplicate_row(chance: Random, model: onnx.ModelProto) -> None:
    rows = rows_of(chance, a_graph(chance, model))
    if rows is not None:
        rows.append(chance.choice(rows))


def shuffle_nodes(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    chance.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def change_slots(chance: Random, model: onnx.ModelProto) -> None:
    node = a_node(chance, model)
    if node is not None:
        slots = chance.choice((node.input, node.output))
        if slots and chance.random() < 0.5:
            del slots[chance.randrange(len(slots))]
        else:
            slots.extend([chance.choice(("", "extra", *node.input))] * chance.choice((1, 2, 100)))


def strange_name(chance: Random, model: onnx.ModelProto) -> None:
    node = a_node(chance, model)
    if node is not None:
        text = chance.choice(("", "n" * 100_000, "\n", "é\0", "../x", "[]{}%s"))
        setattr(node, chance.choice(("name", "op_type", "domain", "overload", "doc_string")), text)


# ---------------------------------------------------------------- types, shapes and data


def absurd_shape(chance: Random, model: onnx.ModelProto) -> None:
    info = an_info(chance, model)
    if info is None:
        return
    shape = info.type.tensor_type.shape
    if shape.dim and chance.random() < 0.6:
        shape.dim[chance.randrange(len(shape.dim))].dim_value = an_integer(chance)
    else:
        for _ in range(chance.choice((1, 2, 70, 3000))):
            shape.dim.add(dim_value=an_integer(chance))


def strange_type(chance: Random, model: onnx.ModelProto) -> None:
    info = an_info(chance, model)
    if info is None:
        return
    tensor = helper.make_tensor_type_proto(chance.randrange(27), [2])
    kinds = [onnx.TypeProto(), tensor, helper.make_sequence_type_proto(tensor), helper.make_optional_type_proto(tensor),
             helper.make_map_type_proto(7, tensor), helper.make_sparse_tensor_type_proto(1, [3])]  # fmt: skip
    info.type.CopyFrom(chance.choice(kinds))


def wrong_element_type(chance: Random, model: onnx.ModelProto) -> None:
    code = chance.choice((*range(28), 99, -1, 1 << 30))
    tensor, info = a_tensor(chance, model), an_info(chance, model)
    if tensor is not None and chance.random() < 0.5:
        tensor.data_type = code
    elif info is not None:
        info.type.tensor_type.elem_type = code


def absurd_dims(chance: Random, model: onnx.ModelProto) -> None:
    tensor = a_tensor(chance, model)
    if tensor is None:
        return
    if tensor.dims and chance.random() < 0.5:
        tensor.dims[chance.randrange(len(tensor.dims))] = an_integer(chance)
    else:
        tensor.dims.extend([an_integer(chance)] * chance.choice((1, 2, 70)))


def huge_tensor(chance: Random, model: onnx.ModelProto) -> None:
    """Declares what it does not hold."""
    tensor = a_tensor(chance, model)
    if tensor is not None:
        del tensor.dims[:]
        tensor.dims.extend(chance.choice(([1 << 40], [1 << 20, 1 << 20], [1 << 62, 4], [1 << 31], [0, 1 << 62])))
        if chance.random() < 0.7:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "string_data", "double_data"):
                tensor.ClearField(field)


def huge_result(chance: Random, model: onnx.ModelProto) -> None:
    """A few numbers from which an op makes a great many."""
    graph = model.graph
    size = chance.choice((1 << 20, 1 << 28, 1 << 31, 1 << 36, 1 << 60, (1 << 63) - 1))
    big = helper.make_tensor("huge_n", 7, [1], [size])
    one = helper.make_tensor("huge_one", 1, [1], [1.0])
    scalars = [helper.make_tensor(n, 7, [], [v]) for n, v in (("huge_0", 0), ("huge_size", size), ("huge_1", 1))]
    pair = helper.make_tensor("huge_pair", 1, [2], [0.0, 1.0])
    graph.initializer.extend([big, one, pair, *scalars])
    kinds = [
        helper.make_node("ConstantOfShape", ["huge_n"], ["huge_y"]),
        helper.make_node("Expand", ["huge_one", "huge_n"], ["huge_y"]),
        helper.make_node("Tile", ["huge_one", "huge_n"], ["huge_y"]),
        helper.make_node("Range", ["huge_0", "huge_size", "huge_1"], ["huge_y"]),
        helper.make_node("OneHot", ["huge_n", "huge_size", "huge_pair"], ["huge_y"]),
        helper.make_node("EyeLike", ["huge_n"], ["huge_y"]),
        helper.make_node("Pad", ["huge_one", "huge_n"], ["huge_y"]),
        helper.make_node("HannWindow", ["huge_size"], ["huge_y"]),
        helper.make_node("Resize", ["huge_one", "", "", "huge_n"], ["huge_y"]),
    ]
    graph.node.extend([chance.choice(kinds), helper.make_node("Shape", ["huge_y"], ["huge_shape"])])
    graph.output.append(helper.make_tensor_value_info("huge_shape", 7, None))
    if chance.random() < 0.5:
        graph.node.append(helper.make_node("ReduceSum", ["huge_y"], ["huge_sum"]))
        graph.output.append(onnx.ValueInfoProto(name="huge_sum"))


def other_data(chance: Random, model: onnx.ModelProto) -> None:
    """Other numbers in a tensor: shapes, axes and amounts among them."""
    tensor = a_tensor(chance, model)
    if tensor is not None and tensor.data_type in (6, 7):
        width = 8 if tensor.data_type == 7 else 4
        count = max(1, len(tensor.raw_data) // width or len(tensor.int64_data) or len(tensor.int32_data))
        numbers = [an_integer(chance) % (1 << 8 * width) for _ in range(min(count, 1000))]
        tensor.ClearField("int64_data")
        tensor.ClearField("int32_data")
        tensor.raw_data = b"".join(n.to_bytes(width, "little") for n in numbers)


def mixed_data(chance: Random, model: onnx.ModelProto) -> None:
    tensor = a_tensor(chance, model)
    if tensor is not None:
        field, value = chance.choice((("float_data", 1.5), ("int32_data", 7), ("int64_data", 7), ("string_data", b"x"),
                                      ("uint64_data", 1), ("double_data", 1.0)))  # fmt: skip
        getattr(tensor, field).extend([value] * chance.choice((1, 3)))
        tensor.segment.begin = chance.randrange(3)


def external_data(chance: Random, model: onnx.ModelProto) -> None:
    tensor = a_tensor(chance, model)
    if tensor is None:
        return
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=chance.choice(LOCATIONS))
    if chance.random() < 0.5:
        numbers = ("0", "4", "-1", "4095", str(1 << 62), str(1 << 80), "one", "", "1e3", "0x10")
        tensor.external_data.add(key="offset", value=chance.choice(numbers))
        tensor.external_data.add(key="length", value=chance.choice(numbers))


def sparse_tensor(chance: Random, model: onnx.ModelProto) -> None:
    graph = a_graph(chance, model)
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(helper.make_tensor(a_name(chance, graph) + chance.choice(("", "_s")), 1, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", 7, [2], [an_integer(chance), an_integer(chance)]))
    sparse.dims.extend([an_integer(chance)] * chance.choice((1, 2)))


# ---------------------------------------------------------------- ops, attributes, versions


def other_op(chance: Random, model: onnx.ModelProto) -> None:
    node = a_node(chance, model)
    if node is not None:
        ops = sorted({s.name for s in onnx.defs.get_all_schemas()})
        node.op_type = chance.choice((*ops, "FakeQuant", "NoSuchOp"))
        if chance.random() < 0.1:
            node.domain = chance.choice(("onnxslim", "com.microsoft", "ai.onnx.ml", "ai.onnx", "nowhere"))


def attribute_number(chance: Random, model: onnx.ModelProto) -> None:
    attribute = an_attribute(chance, model)
    if attribute is None:
        return
    attribute.i, attribute.f = an_integer(chance), chance.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    for numbers in (attribute.ints,):
        if numbers and chance.random() < 0.7:
            numbers[chance.randrange(len(numbers))] = an_integer(chance)
        elif numbers:
            numbers.extend([an_integer(chance)] * chance.choice((1, 2, 100)))


def attribute_type(chance: Random, model: onnx.ModelProto) -> None:
    attribute = an_attribute(chance, model)
    if attribute is not None:
        attribute.type = chance.choice(list(AttributeProto.AttributeType.values()))
        if chance.random() < 0.3:
            attribute.ref_attr_name = "elsewhere"


def attribute_value(chance: Random, model: onnx.ModelProto) -> None:
    attribute = an_attribute(chance, model)
    if attribute is not None:
        values = (3, 1.5, "text", b"\xff\xfe", [1, 2], [1.0], ["a"], helper.make_tensor("t", 1, [1], [1.0]),
                  onnx.GraphProto(name="empty"), helper.make_tensor_type_proto(1, [2]), [0] * 50)  # fmt: skip
        attribute.CopyFrom(helper.make_attribute(attribute.name, chance.choice(values)))


def attribute_name(chance: Random, model: onnx.ModelProto) -> None:
    node = a_node(chance, model)
    if node is None:
        return
    if node.attribute and chance.random() < 0.5:
        del node.attribute[chance.randrange(len(node.attribute))]
    elif node.attribute and chance.random() < 0.5:
        node.attribute.append(chance.choice(node.attribute))
    else:
        names = ("axis", "perm", "to", "value", "group", "pads", "kernel_shape", "body", "unknown", "")
        node.attribute.append(helper.make_attribute(chance.choice(names), chance.choice((1, [1, 0], "x", 0.5))))


def version(chance: Random, model: onnx.ModelProto) -> None:
    number = chance.choice((0, -1, 1, 3, 5, 6, 9, 10, 13, 18, 21, 30, 1_000_000_000, (1 << 63) - 1))
    kind = chance.randrange(4)
    if kind == 0:
        model.ir_version = number
    elif kind == 1 and model.opset_import:
        chance.choice(model.opset_import).version = number
    elif kind == 2:
        model.opset_import.add(domain=chance.choice(("", "ai.onnx", "ai.onnx.ml", "nowhere")), version=number)
    else:
        del model.opset_import[:]


# ---------------------------------------------------------------- bodies and functions


def deep_functions(chance: Random, model: onnx.ModelProto) -> None:
    if model.graph.output:
        depth = chance.choice((1, 3, 30, 300, 3000))
        nested_functions(model, depth, chance.choice((1, 2, 3)), recursive=chance.random() < 0.3)


def damaged_function(chance: Random, model: onnx.ModelProto) -> None:
    function = some(chance, model.functions)
    if function is not None:
        rows = chance.choice((function.input, function.output, function.node, function.opset_import))
        if rows:
            del rows[chance.randrange(len(rows))]


def body_of_its_own(chance: Random, model: onnx.ModelProto) -> None:
    """A node gets the whole graph, or an empty one, for a body."""
    node = some(chance, model.graph.node)
    if node is not None:
        body = onnx.GraphProto()
        if chance.random() < 0.7:
            body.CopyFrom(model.graph)
        name = chance.choice(("then_branch", "else_branch", "body", "value"))
        node.attribute.append(helper.make_attribute(name, body))


STRUCTURAL: Mapping[str, Mutation] = {
    f.__name__: f
    for f in (
        rename_input, rename_output, rename_row, missing_producer, duplicate_producer, cycle, remove_row, duplicate_row,
        shuffle_nodes, change_slots, strange_name, absurd_shape, strange_type, wrong_element_type, absurd_dims,
        huge_tensor, huge_result, other_data, mixed_data, external_data, sparse_tensor, other_op, attribute_number,
        attribute_type, attribute_value, attribute_name, version, deep_functions, damaged_function, body_of_its_own,
    )
}  # fmt: skip
