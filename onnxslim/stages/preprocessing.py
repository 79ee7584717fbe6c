"""A model's preprocessing, noted in its metadata, so that whoever runs the file feeds it right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from onnxslim.data import Preprocess
from onnxslim.errors import DataError, ModelError, ModelFormatError
from onnxslim.files import parse_json, read_regular
from onnxslim.ir.graph import Graph
from onnxslim.ir.onnx_io import read
from onnxslim.runtime.session import Session

__all__ = ["KEY", "chosen_preprocess", "note_preprocess", "noted_preprocess"]

KEY = "onnxslim.preprocess"
"""Key in `metadata_props`; the value is JSON: {"mean": […], "std": […], "layout": "NCHW"}."""


def note_preprocess(graph: Graph, preprocess: Preprocess) -> None:
    """Writes it into the graph's metadata; nothing where there is nothing to say."""
    if not preprocess.mean and preprocess.layout == "NCHW":
        graph.metadata.pop(KEY, None)
        return
    content = {"mean": list(preprocess.mean), "std": list(preprocess.std), "layout": preprocess.layout}
    graph.metadata[KEY] = json.dumps(content, separators=(",", ":"))


def noted_preprocess(model: Graph | str | Path) -> Preprocess | None:
    """What a graph, an .onnx or an .ort file says about its preprocessing; None where it says nothing.

    Raises ModelError where the note is not what `note_preprocess` writes, and what reading raises.
    """
    if isinstance(model, Graph):
        metadata = model.metadata
    elif Path(model).suffix == ".ort":
        metadata = Session(_bytes(Path(model))).raw.get_modelmeta().custom_metadata_map
    else:
        metadata = read(model).metadata
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        content = parse_json(text)
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        return Preprocess(mean, std, content["layout"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The model's metadata '{KEY}' is not a preprocessing note: {text!r} ({error})") from None


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ModelFormatError(f"Cannot read '{path}': {error.strerror}; give the path of an ORT file") from error


def chosen_preprocess(
    models: Sequence[str | Path],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    layout: str | None = None,
) -> Preprocess:
    """One preprocessing for models that see the same data: what is given, the rest as a model notes it.

    Raises DataError where nothing is given and models note different ones, or the layout is unknown.
    """
    noted = {str(model): found for model in models if (found := noted_preprocess(model)) is not None}
    base = next(iter(noted.values()), Preprocess())
    if mean is None and std is None and layout is None:
        for model, found in noted.items():
            if found != base:
                first = next(iter(noted))
                raise DataError(f"{first} and {model} note different preprocessing: say which, `preprocess=…`")
        return base
    if layout not in (None, "NCHW", "NHWC"):
        raise DataError(f"layout: expected NCHW or NHWC, got '{layout}'")
    return Preprocess(
        base.mean if mean is None else mean,
        base.std if std is None else std,
        "NHWC" if (layout or base.layout) == "NHWC" else "NCHW",
    )
