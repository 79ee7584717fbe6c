"""Models larger than memory should have to be: read, folded and written with little of them held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxslim.errors import ModelError
from onnxslim.ir.graph import Array, DType, Graph
from onnxslim.ir.onnx_io import from_proto, read, to_bytes, write

pytestmark = pytest.mark.heavy

MEASURED = """
import sys, threading, time
peak, done = 0, threading.Event()

def sample():
    global peak
    while not done.is_set():
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.01)

sampler = threading.Thread(target=sample)
sampler.start()
try:
    from onnxslim import simplify
    from onnxslim.ir.onnx_io import write
    simplified = simplify(sys.argv[1])
    write(simplified.graph, sys.argv[2])
finally:
    done.set()
    sampler.join()
print(peak, len(simplified.graph.nodes()))
"""
WIDE = 8192  # a matrix of WIDE × WIDE float32 has 256 MiB


def rows(seed: int, shape: tuple[int, ...]) -> Iterator[Array]:
    """A weight, 16 MiB at a time: small numbers, so that the network's outputs stay finite."""
    chance = np.random.default_rng(seed)
    step = max(1, (1 << 22) // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield chance.standard_normal((min(step, shape[0] - start), *shape[1:]), np.float32) * np.float32(0.01)


class Writer:
    """A model whose weights go to a file as they are made."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.weights: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.path, self.offset = folder / "big.onnx", 0
        self.file = (folder / "big.bin").open("wb")

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        seed = len(self.weights)
        self.weights[name] = (seed, shape)
        tensor = TensorProto(name=name, data_type=1, dims=shape, data_location=TensorProto.EXTERNAL)
        size = 4 * int(np.prod(shape))
        for key, value in (("location", "big.bin"), ("offset", str(self.offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        for part in rows(seed, shape):
            self.file.write(part.tobytes())
        self.offset += size
        self.tensors.append(tensor)
        return name

    def small(self, name: str, array: Array) -> str:
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def norm(self, x: str, channels: int) -> str:
        """A batch norm whose factor, 2 / √(0.25 + 0), is 4 in every second channel and 2 in the others."""
        gamma = np.where(np.arange(channels) % 2, 1, 2).astype(np.float32)
        arrays = {"g": gamma, "b": np.ones(channels), "m": np.zeros(channels), "v": np.full(channels, 0.25)}
        key = f"n{len(self.nodes)}"
        names = [self.small(f"{key}.{k}", a.astype(np.float32)) for k, a in arrays.items()]
        return self.node("BatchNormalization", x, *names, epsilon=0.0)

    def close(self, output: str) -> Path:
        self.file.close()
        info = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 512, 4, 4]), (output, [1, WIDE]))]
        graph = helper.make_graph(self.nodes, "big", info[:1], info[1:], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        self.path.write_bytes(model.SerializeToString())
        return self.path


def big_model(folder: Path) -> Writer:
    """3 GiB: 4 convolutions of 64 MiB with batch norms, 11 products of 256 MiB, most with something to fold:
    batch norms, factors, and weights that are transposed or scaled."""
    big = Writer(folder)
    y = "x"
    for index, channels in enumerate((3640, 512, 3640, 512)):
        before = 512 if index % 2 == 0 else 3640
        y = big.norm(big.node("Conv", y, big.weight(f"conv{index}", (channels, before, 3, 3)), pads=[1] * 4), channels)
    y = big.node("Flatten", y)  # 512 · 16 = WIDE
    bias = big.small("bias", np.zeros(WIDE, np.float32))
    for index in range(11):
        weight = big.weight(f"w{index}", (WIDE, WIDE))
        if index == 0:
            y = big.node("MatMul", y, big.node("Transpose", weight, perm=[1, 0]))
        elif index == 1:
            y = big.node("MatMul", y, big.node("Mul", weight, big.small("k", np.float32([0.5]))))
        elif index == 2:
            y = big.norm(big.node("Gemm", y, weight, bias), WIDE)
        elif index == 3:
            y = big.norm(big.node("Gemm", y, weight, bias, transB=1), WIDE)
        elif index == 4:
            y = big.node("Mul", big.node("Gemm", y, weight, bias), big.small("two", np.float32([2])))
        elif index == 5:
            y = big.norm(big.node("Gemm", y, big.node("Transpose", weight, perm=[1, 0]), bias), WIDE)
        else:
            y = big.node("MatMul", y, weight)
        y = big.node("Relu", y)
    big.close(y)
    return big


def test_three_gigabytes_in_less_than_one(tmp_path: Path) -> None:
    big = big_model(tmp_path)
    assert big.offset >= 3 * 10**9
    out = tmp_path / "out.onnx"
    run = [sys.executable, "-W", "error", "-c", MEASURED, str(big.path), str(out)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    peak_kb, nodes = (int(n) for n in done.stdout.split())
    print(f"peak RssAnon {peak_kb / 1000:.0f} MB for {big.offset / 1e9:.2f} GB of weights")
    assert peak_kb * 1024 < 1 << 30
    assert nodes == 4 + 1 + 11 * 2
    graph = read(out)
    factor = np.where(np.arange(WIDE) % 2, 2, 4).astype(np.float32)
    expected = {
        **{f"conv{i}": lambda part, s=None: part * factor[s][:, None, None, None] for i in range(4)},
        "w0": None, "w1": lambda part, s: part * np.float32(0.5), "w2": lambda part, s: part * factor,
        "w3": lambda part, s: part * factor[s, None], "w4": lambda part, s: part * 2, "w5": None,
        **{f"w{i}": lambda part, s: part for i in range(6, 11)},
    }  # fmt: skip
    weights = [v.array for n in graph.nodes() if n.op in ("Conv", "Gemm", "MatMul")
               for v in [graph.input(n, 1)] if v is not None]  # fmt: skip
    assert len(weights) == len(expected)
    for (name, scaled), array in zip(expected.items(), weights):
        assert array is not None
        seed, shape = big.weights[name]
        start = 0
        for part in rows(seed, shape):
            place = slice(start, start + len(part))
            if scaled is None:  # a transposed weight, whose columns have the factors
                found = array[:, place].T
                part = part if name == "w0" else part * factor[place, None]
            else:
                found, part = array[place], scaled(part, place)
            np.testing.assert_array_equal(found, part)
            start += len(part)


def test_a_written_big_model_runs_as_the_one_that_was_read(tmp_path: Path) -> None:
    from onnxslim.run.simple import simplify
    from onnxslim.runtime.session import Session

    big = big_model(tmp_path)
    write(simplify(big.path).graph, tmp_path / "out.onnx")
    x = np.random.default_rng(1).standard_normal((1, 512, 4, 4), np.float32)
    before, after = (next(iter(Session(read(p)).run({"x": x}).values())) for p in (big.path, tmp_path / "out.onnx"))
    assert np.abs(before).max() > 0
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def carrying(attribute_bytes: int, count: int) -> Graph:
    """A graph with `count` tensors of that size in attributes, which cannot lie outside of the file."""
    graph = Graph("carrying")
    x = graph.add_input("x", DType.UINT8, [attribute_bytes])
    for _ in range(count):
        tensor = TensorProto(data_type=2, dims=[attribute_bytes], raw_data=bytes(attribute_bytes))
        x = graph.op("Add", x, graph.op("Constant", value=tensor))
    graph.add_output(x)
    return graph


def test_what_is_not_weights_and_over_two_gigabytes_is_refused_by_name(tmp_path: Path) -> None:
    graph = carrying(800_000_000, 3)
    with pytest.raises(ModelError, match="'carrying' does not fit into one ONNX file"):
        write(graph, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="'carrying' does not fit into one ONNX file"):
        to_bytes(graph)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_over_two_gigabytes_is_refused_by_name(tmp_path: Path) -> None:
    graph = carrying(1_200_000_000, 1)
    write(graph, tmp_path / "half.onnx")
    data = (tmp_path / "half.onnx").read_bytes()
    with (tmp_path / "whole.onnx").open("wb") as file:
        file.write(data)
        file.write(data[:-100])  # protobuf merges what is appended
    with pytest.raises(ModelError, match="a file over 2 GB must keep its weights as external data"):
        read(tmp_path / "whole.onnx")
    assert from_proto(onnx.ModelProto.FromString(data)).name == "carrying"
