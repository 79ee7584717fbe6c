"""Initialisers keep their bytes; external data is mapped, and only from the model's own folder."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import ExternalDataError
from onnxslim.ir.graph import Array, DType
from onnxslim.ir.onnx_io import from_proto, read, to_bytes, write
from onnxslim.ir.onnx_io.tensors import ExternalFiles, array_of, raw_bytes, tensor_of

_NONE = ExternalFiles(None)


@pytest.mark.parametrize("dtype", [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)], ids=lambda d: d.name)
def test_bytes_of_every_type_survive(dtype: DType) -> None:
    try:
        width = helper.tensor_dtype_to_np_dtype(int(dtype)).itemsize
    except KeyError:
        pytest.skip("this onnx does not know the type")
    chance = np.random.default_rng(int(dtype))
    per_byte = {DType.INT4: 2, DType.UINT4: 2, DType.FLOAT4E2M1: 2, DType.INT2: 4, DType.UINT2: 4}.get(dtype, 0)
    size = 12 // per_byte if per_byte else 12 * width
    raw = chance.integers(0, 2 if dtype is DType.BOOL else 256, size, np.uint8).tobytes()
    tensor = TensorProto(name="t", data_type=int(dtype), dims=[3, 4], raw_data=raw)
    array = array_of(tensor, _NONE)
    assert array.shape == (3, 4)
    assert DType.of(array) is dtype
    again = tensor_of("t", array)
    assert (again.raw_data, again.data_type, list(again.dims)) == (raw, int(dtype), [3, 4])


@settings(deadline=None, max_examples=50)
@given(
    hn.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
        hn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_arrays_survive(array: Array) -> None:
    for given_array in (array, array.T):
        back = array_of(tensor_of("t", given_array), _NONE)
        assert back.dtype == given_array.dtype
        assert back.shape == given_array.shape
        assert back.tobytes() == given_array.tobytes()
        assert raw_bytes(given_array).tobytes() == given_array.tobytes()


def test_packed_types_are_unpacked_with_odd_sizes() -> None:
    array = np.array([-8, 7, 3], ml_dtypes.int4)
    tensor = tensor_of("t", array)
    assert len(tensor.raw_data) == 2
    assert array_of(tensor, _NONE).tolist() == [-8, 7, 3]


# ---------------------------------------------------------------- external data


def _with_external(folder: Path, location: str, **entries: str) -> Path:
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    infos = [helper.make_tensor_value_info(n, 1, [4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [tensor])
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_a_view_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"12345678" + np.arange(4, dtype=np.float32).tobytes())
    graph = read(_with_external(tmp_path, "sub/w.bin", offset="8"))
    array = graph.value("w").array
    assert array is not None
    assert array.tolist() == [0, 1, 2, 3]
    base: object = array
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[attr-defined]
    assert isinstance(base, np.memmap)
    assert not array.flags.writeable


def _lead_out(folder: Path) -> str:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    return "link.bin"


def _lead_out_by_folder(folder: Path) -> str:
    (folder / "door").symlink_to(folder.parent, target_is_directory=True)
    return "door/secret.bin"


@pytest.mark.parametrize(
    "location, says",
    [
        (lambda f: "missing.bin", "copy the data file beside the model"),
        (lambda f: "short.bin", "expected 16 bytes from byte 0, but .* has 15 bytes"),
        (lambda f: "empty.bin", "has 0 bytes"),
        (lambda f: str(f / "whole.bin"), "got an absolute one"),
        (lambda f: "C:\\data\\w.bin", "got an absolute one"),
        (lambda f: "\\\\server\\w.bin", "got an absolute one"),
        (lambda f: "../secret.bin", "outside of the model's folder"),
        (lambda f: "sub/../../secret.bin", "outside of the model's folder"),
        (_lead_out, "outside of the model's folder"),
        (_lead_out_by_folder, "outside of the model's folder"),
        (lambda f: "sub", "not a regular file"),
        (lambda f: "pipe", "not a regular file"),
        (lambda f: "", "expected a file name"),
        (lambda f: "a\0b", "expected a file name"),
        (lambda f: "whole.bin/w", "cannot open"),
        (lambda f: "n" * 5000, "cannot open"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_external_data_is_refused(location: Callable[[Path], str], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    for name, size in (("short.bin", 15), ("empty.bin", 0), ("whole.bin", 16), ("../secret.bin", 16)):
        (folder / name).write_bytes(bytes(size))
    path = _with_external(folder, location(folder))
    with pytest.raises(ExternalDataError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "'w'" in str(caught.value)


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"offset": "-4"}, "must be numbers"),
        ({"offset": "four"}, "must be numbers"),
        ({"length": "1e3"}, "must be numbers"),
        ({"offset": "4"}, "expected 16 bytes from byte 4"),
        ({"offset": "99999999999999999999"}, "has 16 bytes"),
        ({"length": "12"}, r"expected 16 bytes for shape \[4\], but its length is given as 12"),
    ],
)
def test_wrong_offsets_and_lengths(entries: dict[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    with pytest.raises(ExternalDataError, match=says):
        read(_with_external(tmp_path, "w.bin", **entries))


def test_a_link_within_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "link.bin").symlink_to("real.bin")
    array = read(_with_external(tmp_path, "link.bin")).value("w").array
    assert array is not None
    assert array.tolist() == [1, 1, 1, 1]


def test_a_proto_alone_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    model = onnx.load(str(_with_external(tmp_path, "w.bin")), load_external_data=False)
    with pytest.raises(ExternalDataError, match="without its folder"):
        from_proto(model)
    assert from_proto(model, tmp_path).value("w").shape == (4,)


def test_external_tensors_in_attributes_and_bodies_become_part_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value=tensor), helper.make_node("Add", ["inner", "w"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", 1, [4])],
        [tensor],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)],
        "g",
        [helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = to_bytes(from_proto(model, tmp_path))
    again = onnx.load_model_from_string(data)
    inside = again.graph.node[0].attribute[0].g
    assert numpy_helper.to_array(inside.initializer[0]).tolist() == [0, 1, 2, 3]
    assert numpy_helper.to_array(inside.node[0].attribute[0].t).tolist() == [0, 1, 2, 3]
    (tmp_path / "w.bin").write_bytes(bytes(3))
    with pytest.raises(ExternalDataError, match="has 3 bytes"):
        from_proto(model, tmp_path)


_OPEN_LARGE = """
import resource, sys
from onnxslim.ir.onnx_io import read
from onnxslim.ir.verify import verify
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = read(sys.argv[1])
verify(graph)
twin = graph.copy()
array = graph.value("w").array
assert array.shape == (1 << 10, 1 << 20) and float(array[-1, -1]) == 0.0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_four_gigabytes_are_opened_without_reading_them(tmp_path: Path) -> None:
    with open(tmp_path / "big.data", "wb") as file:
        file.truncate(1 << 32)  # a hole
    tensor = TensorProto(name="w", data_type=1, dims=[1 << 10, 1 << 20], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="big.data")
    infos = [helper.make_tensor_value_info(n, 1, [1 << 10, 1 << 20]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "big.onnx").write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_LARGE, str(tmp_path / "big.onnx")], capture_output=True, text=True, check=True
    )
    kilobytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 64 * 1024


def test_many_tensors_in_one_file_take_one_descriptor(tmp_path: Path) -> None:
    model = from_proto(onnx.load(str(_with_inline(tmp_path, 300))))
    write(model, tmp_path / "out.onnx", external_data=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, limits[1]), limits[1]))
    try:
        graph = read(tmp_path / "out.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(graph.initializers()) == 300
    assert to_bytes(graph) == to_bytes(model)


def _with_inline(folder: Path, count: int) -> Path:
    arrays = [numpy_helper.from_array(np.full(300, i, np.float32), f"w{i}") for i in range(count)]
    nodes = [helper.make_node("Sum", [a.name for a in arrays], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, [300])], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "inline.onnx").write_bytes(model.SerializeToString())
    return folder / "inline.onnx"
