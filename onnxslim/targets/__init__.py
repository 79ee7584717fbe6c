"""Target profiles as data: what a device's int8 kernels take, one YAML file a target."""

from onnxslim.targets.profile import Target, known_targets, load_target, target_names

__all__ = ["Target", "known_targets", "load_target", "target_names"]
