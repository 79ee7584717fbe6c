"""ORT format: the `.ort` file that mobile builds of ONNX Runtime load, and the list of operators it needs."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import ModelFormatError, UnsupportedError
from onnxslim.files import require_name, write_atomic, write_together
from onnxslim.runtime.isolated import isolated

__all__ = ["OrtFiles", "write_ort"]

_CALL = """
import sys, pathlib
from onnxruntime.tools import convert_onnx_models_to_ort as tool
tool.convert_onnx_models_to_ort(
    pathlib.Path(sys.argv[1]),
    output_dir=pathlib.Path(sys.argv[2]),
    optimization_styles=[tool.OptimizationStyle.Fixed],
    enable_type_reduction=True,
    target_platform=sys.argv[3],
)
"""


@dataclass(frozen=True)
class OrtFiles:
    """What was written: the model, and the configuration for a reduced build of the runtime
    (`--include_ops_by_config`)."""

    model: Path
    config: Path


def write_ort(model: bytes | str | Path, folder: str | Path, target_platform: str, *, name: str = "model") -> OrtFiles:
    """Converts an ONNX model to `folder/name.ort` and `folder/required_operators.config`.

    `target_platform`: "arm" or "amd64"; only "arm" keeps int8 activations on integer kernels.
    ONNX Runtime's converter runs in a process and a temporary folder of its own, because it prints,
    configures logging and leaves files beside its input; the results appear whole or not at all.

    Raises UnsupportedError where the converter refuses the model, ModelFormatError where `model` is
    not a file, OutputError where the folder cannot be written.
    """
    require_name(name, "name")
    if target_platform not in ("arm", "amd64"):
        raise UnsupportedError(f"target_platform: expected 'arm' or 'amd64', got '{target_platform}'")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ModelFormatError(f"'{model}' is not a file")
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as scratch:
        source, out = Path(scratch) / "model.onnx", Path(scratch) / "out"
        out.mkdir()
        if isinstance(model, bytes):
            write_atomic(source, model)
        else:
            source = Path(model).resolve()
        command = isolated(_CALL, str(source), str(out), target_platform)
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, errors="replace", check=False)
        models, configs = sorted(out.glob("*.ort")), sorted(out.glob("*.config"))
        if done.returncode != 0 or not models or not configs:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise UnsupportedError(f"ONNX Runtime cannot convert '{source.name}' to the ORT format: {reason}")
        config = configs[0].read_text("utf-8").replace(str(models[0]), f"{name}.ort")
        files = OrtFiles(Path(folder) / f"{name}.ort", Path(folder) / "required_operators.config")
        write_together({files.model: models[0].read_bytes(), files.config: config.encode()})
    return files
