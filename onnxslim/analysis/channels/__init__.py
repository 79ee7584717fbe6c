"""Channel groups: which channels of a network can be cut, and what has to go with each.

`find_groups` reads every op through a table of rules (`rules/`), which say what each couples; no pattern of
layers is known by name.
"""

from onnxslim.analysis.channels.couplings import Axis, Couplings, Reader
from onnxslim.analysis.channels.groups import Group, Groups, Member, find_groups

__all__ = ["Axis", "Couplings", "Group", "Groups", "Member", "Reader", "find_groups"]
