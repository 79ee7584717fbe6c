"""Names inside subgraph bodies (If, Loop, Scan): what they capture from outside, and renaming it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

__all__ = ["bodies_of", "captured_names", "depth_of", "free_names", "local_names", "renamed"]


def bodies_of(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    """The subgraphs among a node's attributes."""
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def depth_of(nodes: Iterable[onnx.NodeProto]) -> int:
    """How many bodies are inside one another, at most; 0 where there are none."""
    deepest, waiting = 0, [(node, 0) for node in nodes]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        waiting.extend((inner, depth + 1) for body in bodies_of(node.attribute) for inner in body.node)
    return deepest


def captured_names(attributes: Iterable[onnx.AttributeProto]) -> list[str]:
    """Names that the bodies, and bodies within them, read from the graph around, in order of first use."""
    found: dict[str, None] = {}
    for body in bodies_of(attributes):
        found.update(dict.fromkeys(free_names(body)))
    return list(found)


def _own(body: onnx.GraphProto) -> dict[str, None]:
    """Names that the body itself defines."""
    own = dict.fromkeys(v.name for v in body.input)
    own.update(dict.fromkeys(t.name for t in body.initializer))
    own.update(dict.fromkeys(s.values.name for s in body.sparse_initializer))
    own.update(dict.fromkeys(name for node in body.node for name in node.output))
    return own


def free_names(body: onnx.GraphProto) -> list[str]:
    """Names that the body, and bodies within it, read from outside, in order of first use."""
    own = _own(body)
    free: dict[str, None] = {}
    for node in body.node:
        read = [*node.input, *captured_names(node.attribute)]
        free.update(dict.fromkeys(name for name in read if name and name not in own))
    free.update(dict.fromkeys(v.name for v in body.output if v.name and v.name not in own))
    return list(free)


def local_names(attributes: Iterable[onnx.AttributeProto]) -> dict[str, None]:
    """Names defined inside the bodies, at any depth."""
    names: dict[str, None] = {}
    for body in bodies_of(attributes):
        names.update(_own(body))
        for node in body.node:
            names.update(local_names(node.attribute))
    names.pop("", None)
    return names


def renamed(
    attribute: onnx.AttributeProto, names: Mapping[str, str], own: Mapping[str, str] | None = None
) -> onnx.AttributeProto:
    """A copy whose bodies read captured values under their new names.

    `own` renames what the bodies define themselves. Another of their names that would now hide a captured
    value gives way.
    """
    local = local_names([attribute])
    moved = dict(own or {})
    taken = {*names.values(), *captured_names([attribute]), *local, *moved.values()}
    for name in local:
        if name in names.values() and name not in moved:
            count = 2
            while f"{name}_{count}" in taken:
                count += 1
            moved[name] = f"{name}_{count}"
            taken.add(moved[name])
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    for body in bodies_of([copy]):
        _rename(body, dict(names), moved)
    return copy


def _rename(body: onnx.GraphProto, outer: Mapping[str, str], moved: Mapping[str, str]) -> None:
    """`outer` maps names visible from outside; `moved` maps names that bodies define."""
    own = _own(body)
    scope = {old: new for old, new in outer.items() if old not in own}
    scope.update({name: moved[name] for name in own if name in moved})
    for info in (*body.input, *body.output, *body.value_info):
        info.name = scope.get(info.name, info.name)
    for tensor in (*body.initializer, *(s.values for s in body.sparse_initializer)):
        tensor.name = scope.get(tensor.name, tensor.name)
    for annotation in body.quantization_annotation:
        annotation.tensor_name = scope.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = scope.get(entry.value, entry.value)
    for node in body.node:
        node.input[:] = [scope.get(name, name) for name in node.input]
        node.output[:] = [scope.get(name, name) for name in node.output]
        for inner in bodies_of(node.attribute):
            _rename(inner, scope, moved)
