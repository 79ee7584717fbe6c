"""A model's preprocessing, noted in its metadata, so that whoever runs the file feeds it right."""

from __future__ import annotations

import json
from pathlib import Path

from onnxslim.data import Preprocess
from onnxslim.errors import ModelError
from onnxslim.graph import Graph
from onnxslim.onnx_io import read
from onnxslim.runtime.session import Session

__all__ = ["KEY", "note_preprocess", "noted_preprocess"]

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
        metadata = Session(Path(model).read_bytes()).raw.get_modelmeta().custom_metadata_map
    else:
        metadata = read(model).metadata
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        content = json.loads(text)
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        return Preprocess(mean, std, content["layout"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The model's metadata '{KEY}' is not a preprocessing note: {text!r} ({error})") from None
