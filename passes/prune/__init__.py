"""Passes that take channels away."""

from passes.prune.cut_channels import CutChannels
from passes.prune.mask_channels import MaskChannels

__all__ = ["CutChannels", "MaskChannels"]
