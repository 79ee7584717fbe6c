"""Whether every strategy meets its target: the MACs that are left, by strategy and multiple.

    python benchmarks/pruning_targets.py MODEL.onnx… --data cifar10.zip [--macs 0.5] [--multiples 1 8]

MACs are counted on the cut model, by `onnxslim.cost`. Sensitivities are measured on a few validation images at three
ratios: enough for a curve to cut by, not for a model to ship. Ends with 1 where more is left than asked for, or, with
channels in multiples of 1, less than one percent under it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import onnxslim
from onnxslim.cli.options import progress_bar
from onnxslim.data import Subset

_EVERY = 10  # validation images that sensitivity is measured on
NORMALIZE = {"mean": [125.3, 123.0, 113.9], "std": [63.0, 62.1, 66.7]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders, or a zip of them")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    val = onnxslim.open_dataset(options.data, "val")
    data = {
        "train": onnxslim.open_dataset(options.data, "train[:256]"),
        "val": Subset(val, np.arange(0, len(val), _EVERY)),
        "normalize": NORMALIZE,
    }
    strategies = ("uniform", "global", "sensitivity")
    print("| model | multiple | " + " | ".join(strategies) + " |\n|---|---|" + "---|" * len(strategies))
    missed = False
    with TemporaryDirectory() as folder, progress_bar() as progress:
        for path in options.models:
            whole = onnxslim.cost(onnxslim.read(path)).macs
            measured = {"sensitivities": f"{folder}/{path.stem}.json", "ratios": [0.3, 0.6, 0.9], "samples": 256}
            for multiple in options.multiples:
                cells = []
                for strategy in strategies:
                    found = onnxslim.prune(
                        path,
                        data,
                        macs=options.macs,
                        strategy=strategy,
                        multiple=multiple,
                        progress=progress,
                        **measured,
                    )
                    left = onnxslim.cost(found.graph).macs / whole
                    missed |= left > options.macs or (multiple == 1 and left < options.macs - 0.01)
                    given = f", {found.plan.repaired} units given back" if found.plan.repaired else ""
                    cells.append(f"{100 * left:.2f} %{given}")
                print(f"| {path.stem} | {multiple} | {' | '.join(cells)} |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
