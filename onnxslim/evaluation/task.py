"""`Task`: one model and what evaluates it, which any `concurrent.futures.Executor` takes.

Where the executor shares this process's memory, a task is just called. Where it sends it to another process or machine,
it crosses as bytes: the model as ONNX, the function by its name, its further arguments as JSON. What comes back is
bytes too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

import onnx

from onnxslim.errors import DataError
from onnxslim.evaluation.store import Result
from onnxslim.ir import onnx_io
from onnxslim.ir.graph import Graph
from onnxslim.runtime import messages

__all__ = ["Task", "run_task"]


@dataclass(frozen=True)
class Task:
    """evaluate(graph). To be sent, `evaluate` is a function of a module, or a `functools.partial` of one with plain
    arguments: numbers, strings, lists and dicts of them."""

    graph: Graph
    evaluate: Callable[[Graph], Result]

    def __call__(self) -> bytes:
        """JSON with the `result`, and the `seconds` that it took. DataError where the result is nothing JSON holds."""
        start = time.perf_counter()
        result = self.evaluate(self.graph)
        seconds = time.perf_counter() - start
        try:
            return json.dumps({"result": result, "seconds": seconds}).encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"A result must be what JSON holds, got {type(result).__name__}: {error}") from error

    def to_bytes(self) -> bytes:
        """The task, to be sent. Raises DataError where another process could not find `evaluate`."""
        return messages.to_bytes(_reference(self.evaluate), [onnx_io.to_bytes(self.graph)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Task:
        """The task that `to_bytes` made; its function is imported. DataError where it is not found here."""
        head, (model,) = messages.from_bytes(data)
        function = _found(head["module"], head["name"])
        if function is None:
            raise DataError(
                f"{head['name']} of module {head['module']} is not found in the process that is to evaluate with it: "
                "put it in a module that is installed there, or on its path"
            )
        if head["args"] or head["kwargs"]:
            function = partial(function, *head["args"], **head["kwargs"])
        return cls(onnx_io.from_proto(onnx.ModelProto.FromString(model)), function)

    def __reduce__(self) -> tuple[Any, ...]:
        """For executors that send what they are given: bytes, and a function of bytes."""
        return partial, (run_task, self.to_bytes())


def run_task(data: bytes) -> bytes:
    """The result of the task that is sent, as it is sent back."""
    return Task.from_bytes(data)()


def _found(module: str, name: str) -> Any:
    """What a module has under a name; None where there is no such thing."""
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


def _reference(evaluate: Callable[[Graph], Result]) -> dict[str, Any]:
    """Where the function is found, and its further arguments."""
    function, args, kwargs = evaluate, (), {}
    if isinstance(evaluate, partial):
        function, args, kwargs = evaluate.func, evaluate.args, evaluate.keywords
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    if _found(module, name) is not function:
        raise DataError(
            f"{name or repr(function)} cannot be sent to another process: expected a function of a module, or a "
            "functools.partial of one"
        )
    plain = {"args": list(args), "kwargs": dict(kwargs)}
    try:
        kept = json.loads(json.dumps(plain)) == plain
    except (TypeError, ValueError):
        kept = False
    if not kept:
        raise DataError(
            f"The arguments of {name} cannot be sent to another process: expected numbers, strings, lists and dicts of "
            f"them, got {', '.join(map(repr, [*args, *kwargs.values()]))}"
        )
    return {"module": module, "name": name, **plain}
