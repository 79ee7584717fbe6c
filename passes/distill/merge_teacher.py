"""`MergeTeacher`: the teacher becomes a part of the student's graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxslim.errors import OptionError
from onnxslim.ir.graph import Graph, Role
from onnxslim.ir.rewrite import Context, Outcome, Pass

__all__ = ["MergeTeacher"]


@dataclass(frozen=True)
class MergeTeacher(Pass):
    """student(x), teacher(x)  →  one graph of both; `context.taps` tells what the teacher's values are called in it.

    teacher: its name. The teacher (`context.graphs[teacher]`, in the same opset) reads the student's inputs, by name,
    or by position where the names differ. Its weights are constants, so ONNX Runtime optimises that half as for
    inference. Its outputs are not outputs of the merged graph: losses read them.

    OptionError where the inputs or the first outputs of the two do not fit. Exact: merging changes
    neither.
    """

    teacher: str = "teacher"
    name: ClassVar[str] = "merge_teacher"

    def run(self, graph: Graph, context: Context) -> Outcome:
        teacher = context.graphs[self.teacher].copy()
        mine = [v for v in graph.inputs if v.array is None and v.role is Role.ACTIVATION]
        theirs = [v for v in teacher.inputs if v.array is None]
        if len(theirs) > len(mine):
            raise OptionError("teacher", f"has {len(theirs)} inputs, the student only {len(mine)} to feed it from")
        by_name = {v.name: v for v in mine}
        feeds = {}
        for value, same_place in zip(theirs, mine):
            source = by_name.get(value.name, same_place)
            if _differ(value.shape, source.shape) or value.dtype != source.dtype:
                raise OptionError(
                    "teacher",
                    f"its input '{value.name}' is {value.dtype.name} {value.shape}, but the student's "
                    f"'{source.name}' is {source.dtype.name} {source.shape}: a teacher must take the same data",
                )
            feeds[value.name] = source
        student_out, teacher_out = graph.outputs[0], teacher.outputs[0]
        if _differ(student_out.shape, teacher_out.shape):
            raise OptionError(
                "teacher",
                f"its output '{teacher_out.name}' has the shape {teacher_out.shape}, but the student's "
                f"'{student_out.name}' has {student_out.shape}: expected equal sizes (the same classes)",
            )
        for value in teacher.initializers():
            teacher.set_role(value, Role.CONSTANT)
        merged = graph.merge(teacher, f"{self.teacher}.", feeds)
        context.taps.update({(self.teacher, name): value.name for name, value in merged.items()})
        context.taps[self.teacher, ""] = merged[teacher_out.name].name
        return Outcome(1)


def _differ(a: tuple[object, ...] | None, b: tuple[object, ...] | None) -> bool:
    """Whether two shapes are known to be different."""
    if a is None or b is None:
        return False
    return len(a) != len(b) or any(i != j for i, j in zip(a, b) if isinstance(i, int) and isinstance(j, int))
