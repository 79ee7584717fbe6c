"""Deployment: what makes a finished model small and portable."""

from onnxslim.ir.rewrite import Pipeline
from passes.deploy.name_nodes import NameNodes
from passes.deploy.shorten_names import ShortenNames
from passes.deploy.split_batchnorm import SplitBatchnorm

__all__ = ["NameNodes", "ShortenNames", "SplitBatchnorm", "finish"]


def finish(*, short: bool = False) -> Pipeline:
    """What everything written goes through last: what ONNX Runtime misreads is said otherwise, and every node has a
    name of its own (`short`: values and nodes short ones, without what exporters noted)."""
    return Pipeline((SplitBatchnorm(), ShortenNames() if short else NameNodes()))
