"""Layouts: whether the images of a batch, or the channels, lie side by side in the vector lanes."""

from passes.layout.blocked import ExpandBlocked, ToBlocked
from passes.layout.expand_lanes import ExpandLanes
from passes.layout.shape_ports import ShapePorts
from passes.layout.to_lanes import ToLanes

__all__ = ["ExpandBlocked", "ExpandLanes", "ShapePorts", "ToBlocked", "ToLanes"]
