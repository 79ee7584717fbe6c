"""Name patterns: what a user means by `skip: [head, Conv, '/features/*']`."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnxslim.errors import OptionError
from onnxslim.ir.graph import Graph, Node

__all__ = ["Names", "label", "matched", "matches", "place"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Names:
    """What something may be called by: own names, which a glob or a regular expression may match, and kinds (op
    types), which are named in full."""

    own: tuple[str, ...]
    kinds: tuple[str, ...] = ()


def label(graph: Graph, node: Node) -> str:
    """A node's name; where it has none, that of its first output."""
    return node.name or next((v.name for v in graph.node_outputs(node) if v is not None), node.op)


def place(graph: Graph, node: Node) -> str:
    """A node as messages name it: `node 'conv1' (Conv)`."""
    kind = f"{node.domain}.{node.op}" if node.domain else node.op
    return f"node '{label(graph, node)}' ({kind})"


def matches(pattern: str, named: Mapping[K, Names], key: str, what: str) -> list[K]:
    """What a pattern means, in order: a name, a kind, a glob over names, or "re:" and an expression for whole names.

    key: the option that the pattern is given to; what: "node of graph 'g'", both for messages. Raises OptionError where
    nothing matches, with near names, or the expression is none.
    """
    hits = [item for item, names in named.items() if _hit(pattern, names, key)]
    if not hits:
        known = list(dict.fromkeys([n for names in named.values() for n in (*names.own, *names.kinds)]))
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise OptionError(key, f"'{pattern}' matches no {what}{hint}")
    return hits


def _hit(pattern: str, names: Names, key: str) -> bool:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise OptionError(key, f"'{pattern}' is not a regular expression: {error}") from None
        return any(expression.fullmatch(name) for name in names.own)
    exact: Iterable[str] = (*names.own, *names.kinds)
    return pattern in exact or any(fnmatch.fnmatchcase(name, pattern) for name in names.own)


def matched(patterns: Sequence[str], named: Mapping[K, Names], key: str, what: str) -> list[K]:
    """What any of several patterns means, each thing once, in order."""
    hits = {item for pattern in patterns for item in matches(pattern, named, key, what)}
    return [item for item in named if item in hits]
