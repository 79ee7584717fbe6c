"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.errors import GradientError
from onnxslim.ir.graph import Value
from passes.gradient.tape import Rule, Tape

__all__ = ["RULES"]

Gradients = Sequence[Value | None]


def _gemm(t: Tape) -> Gradients:
    """y = α·A'·B' + β·C, where ' transposes if asked."""
    a, b, alpha = t.x(0), t.x(1), float(t.node.attr("alpha", 1.0))
    flip_a, flip_b = bool(t.node.attr("transA", 0)), bool(t.node.attr("transB", 0))
    da = db = dc = None
    if t.wants(0):
        da = (
            t.op("Gemm", b, t.dy, transA=int(flip_b), transB=1, alpha=alpha)
            if flip_a
            else t.op("Gemm", t.dy, b, transB=int(not flip_b), alpha=alpha)
        )
    if t.wants(1):
        db = (
            t.op("Gemm", t.dy, a, transA=1, transB=int(flip_a), alpha=alpha)
            if flip_b
            else t.op("Gemm", a, t.dy, transA=int(not flip_a), alpha=alpha)
        )
    if t.wants(2):
        dc = t.scale(t.unbroadcast(t.dy, 2), float(t.node.attr("beta", 1.0)))
    return [da, db, dc]


def _swapped(t: Tape, value: Value, rank: int) -> Value:
    perm = list(range(rank))
    perm[-2:] = perm[:-3:-1] if rank > 1 else perm[-2:]
    return t.op("Transpose", value, perm=perm)


def _matmul(t: Tape) -> Gradients:
    """Y = A·B with numpy's rules: vectors stand as rows or columns, leading axes broadcast."""
    a_shape, b_shape = list(t.shape(0)), list(t.shape(1))
    a_full = [1, *a_shape] if len(a_shape) == 1 else a_shape
    b_full = [*b_shape, 1] if len(b_shape) == 1 else b_shape
    a = t.x(0) if a_full == a_shape else t.reshape(t.x(0), a_full)
    b = t.x(1) if b_full == b_shape else t.reshape(t.x(1), b_full)
    rank = max(len(a_full), len(b_full))
    pad_a, pad_b = [1] * (rank - len(a_full)) + a_full, [1] * (rank - len(b_full)) + b_full
    lead = [max(i, j) for i, j in zip(pad_a[:-2], pad_b[:-2])]
    dy = t.reshape(t.dy, [*lead, pad_a[-2], pad_b[-1]])
    da = db = None
    if t.wants(0):
        product = t.op("MatMul", dy, _swapped(t, b, len(b_full)))
        da = _summed(t, product, lead, pad_a, a_shape)
    if t.wants(1):
        product = t.op("MatMul", _swapped(t, a, len(a_full)), dy)
        db = _summed(t, product, lead, pad_b, b_shape)
    return [da, db]


def _summed(t: Tape, product: Value, lead: list[int], padded: list[int], shape: list[int]) -> Value:
    axes = [i for i, size in enumerate(lead) if padded[i] == 1 and size != 1]
    return t.reshape(t.sum(product, axes, keepdims=True), shape)


def _einsum(t: Tape) -> Gradients:
    """The gradient of an operand is the einsum of dy with the other operands, to that operand's indices."""
    terms, out = _einsum_terms(t)
    found: list[Value | None] = []
    for slot, term in enumerate(terms):
        if not t.wants(slot):
            found.append(None)
            continue
        others = [(terms[i], t.x(i)) for i in range(len(terms)) if i != slot]
        known = set(out).union(*(letters for letters, _ in others))
        reachable = "".join(letter for letter in term if letter in known)
        equation = ",".join([out, *(letters for letters, _ in others)]) + "->" + reachable
        part = t.op("Einsum", t.dy, *(value for _, value in others), equation=equation)
        if reachable != term:  # an index that was only summed over: the same for all of it
            shape = t.shape(slot)
            part = t.reshape(part, [d if letter in known else 1 for letter, d in zip(term, shape)])
            part = t.op("Expand", part, t.ints(*shape))
        found.append(part)
    return found


def _einsum_terms(t: Tape) -> tuple[list[str], str]:
    """The indices of each operand and of the result; an ellipsis becomes letters of its own."""
    equation = str(t.node.attr("equation")).replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    for slot, term in enumerate(terms):
        if "..." in term:
            extra = len(t.shape(slot)) - len(term.replace("...", ""))
            if extra and t.shape(slot)[term.index("...")] == 1:
                raise GradientError(f"{t.node}: an ellipsis that broadcasts has no gradient rule")
            terms[slot] = term.replace("...", "".join(spare[:extra]))
            out = out.replace("...", "".join(spare[:extra]))
    if not arrow:
        letters = "".join(terms)
        out = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(term)) < len(term) for term in terms):
        raise GradientError(f"{t.node}: an index that stands twice in one operand has no gradient rule")
    return terms, out


RULES: dict[str, Rule] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
