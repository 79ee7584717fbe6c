"""Differentiation: gradients of a graph as part of the graph."""

from passes.gradient.differentiate import differentiable_ops, differentiate, refusal
from passes.gradient.tape import GradientOptions

__all__ = ["GradientOptions", "differentiable_ops", "differentiate", "refusal"]
