"""Target profiles as data: what a device's int8 kernels take, one YAML file a target; a new one is one more file."""

from onnxslim.targets.profile import Target, load_target, target_names

__all__ = ["Target", "load_target", "target_names"]
