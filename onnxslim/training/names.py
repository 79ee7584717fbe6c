"""Names of a model's tensors inside of training.

A step's graph, the update's and the training state have names of their own: `label`, `loss`, `grad.w`, `rows/…`,
`w.momentum`. A tensor of the model that is called like that moves out of the way at the entrance and has its name back
in whatever comes out. The move is a function of the name alone, so that every part of training agrees on it, and so do
the checkpoints of two runs.

    label  →  user/label/        conv.weight  →  conv.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from onnxslim.errors import OnnxSlimError
from onnxslim.ir.graph import Graph

__all__ = ["inner_name", "move_names", "outer_name", "outer_names", "users_names"]

_OWN = re.compile(
    r"(label|loss|correct|lr|step|factor|grad_norm)"
    r"|(loss|teacher|grad|observed|batch_mean|batch_var)\..*"
    r"|(user|rows|op|const|ints|correction|power|w\d+)/.*"
    r"|.*\.(next|momentum|exp_avg|exp_avg_sq)|.*_grad",
    re.DOTALL,
)
"""What training itself calls its tensors."""
_MOVED = re.compile(r"user/(.*?)/(?=(?:\.(?:momentum|exp_avg|exp_avg_sq))?(?:'|\Z))", re.DOTALL)
"""A moved name at the end of a quoted one, itself or in the name of its moment or gradient."""


def inner_name(name: str) -> str:
    """What a tensor of the model is called in training; different for different names."""
    return f"user/{name}/" if _OWN.fullmatch(name) else name


def outer_name(name: str) -> str:
    """What the model calls a tensor of training; names that training made stay."""
    return name[len("user/") : -1] if name.startswith("user/") and name.endswith("/") else name


def outer_names(text: str) -> str:
    """A message in which tensors have the model's names."""
    return _MOVED.sub(r"\1", text)


def move_names(graph: Graph) -> Graph:
    """Gives the tensors of a model the names that they have in training, in place; the graph."""
    for value in sorted(graph.values(), key=lambda value: -len(value.name)):  # no name is taken by one still to move
        graph.rename(value, inner_name(value.name))
    return graph


@contextmanager
def users_names() -> Iterator[None]:
    """What is raised within says the model's names."""
    try:
        yield
    except OnnxSlimError as error:
        error.args = tuple(outer_names(a) if isinstance(a, str) else a for a in error.args)
        raise
