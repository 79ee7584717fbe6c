"""Which local functions of one model another may take over as they are, and which need another name there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx

__all__ = ["Key", "call_key", "function_names", "recalled", "recalling"]

Key: TypeAlias = tuple[str, str, str]
"""(domain, name, overload) of a function."""


def call_key(domain: str, name: str, overload: str) -> Key:
    """What tells functions apart, and the calls of them: ai.onnx is the domain without a name."""
    return ("" if domain == "ai.onnx" else domain, name, overload)


def function_names(mine: Sequence[onnx.FunctionProto], theirs: Sequence[onnx.FunctionProto]) -> dict[Key, str]:
    """New names for those of `theirs` whose key one of `mine` has with another meaning: another body, or the same one
    that calls a function which is renamed."""
    known = {_key(f): f.SerializeToString(deterministic=True) for f in mine}
    clashing = {_key(f): f for f in theirs if _key(f) in known}
    renamed = {key for key, f in clashing.items() if known[key] != f.SerializeToString(deterministic=True)}
    while True:
        more = {k for k, f in clashing.items() if k not in renamed and any(c in renamed for c in _calls(f.node))}
        if not more:
            break
        renamed |= more
    taken = {(domain, name) for domain, name, _ in (*known, *(_key(f) for f in theirs))}
    found: dict[Key, str] = {}
    for key in (key for key in clashing if key in renamed):
        count = 2
        while (key[0], f"{key[1]}_{count}") in taken:
            count += 1
        found[key] = f"{key[1]}_{count}"
        taken.add((key[0], found[key]))
    return found


def recalling(function: onnx.FunctionProto, names: Mapping[Key, str]) -> onnx.FunctionProto:
    """A copy of a function under its new name, whose calls use the new names."""
    copy = onnx.FunctionProto()
    copy.CopyFrom(function)
    copy.name = names.get(_key(function), function.name)
    _rename(copy.node, names)
    return copy


def recalled(attribute: onnx.AttributeProto, names: Mapping[Key, str]) -> onnx.AttributeProto:
    """The attribute, or a copy whose bodies call functions by their new names."""
    bodies = list(_bodies(attribute))
    if not bodies or not any(key in names for body in bodies for key in _calls(body.node)):
        return attribute
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    for body in _bodies(copy):
        _rename(body.node, names)
    return copy


def _key(function: onnx.FunctionProto) -> Key:
    return call_key(function.domain, function.name, function.overload)


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[Key]:
    for node in nodes:
        yield call_key(node.domain, node.op_type, node.overload)
        for attribute in node.attribute:
            for body in _bodies(attribute):
                yield from _calls(body.node)


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[Key, str]) -> None:
    for node in nodes:
        node.op_type = names.get(call_key(node.domain, node.op_type, node.overload), node.op_type)
        for attribute in node.attribute:
            for body in _bodies(attribute):
                _rename(body.node, names)
