"""Whether a pruned model is faster, and what rounding its channels brings.

    python benchmarks/pruned_latency.py MODEL.onnx… [--macs 0.5] [--multiples 1 8 16] [--batch 1] [--repeats 400]

Cuts each model uniformly to a fraction of its MACs, once for each multiple, and times the whole model and the cut ones
in one run, taking turns, on one thread. Ends with 1 where a model with channels in multiples of 8 is not faster than
the whole one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnxslim
from onnxslim.runtime.capabilities import capabilities
from onnxslim.stages.base import prepared
from passes.simplify import FoldBatchnorm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    found = capabilities()
    print(f"{found.cpu}; {found.distribution} {found.version}; batch {options.batch}, one thread, medians")
    print("| model | ms | " + " | ".join(f"multiples of {m}: MACs, latency" for m in options.multiples) + " |")
    print("|---|---|" + "---|" * len(options.multiples))
    slow = False
    for path in options.models:
        whole = prepared(onnxslim.read(path))
        FoldBatchnorm()(whole)
        macs = onnxslim.cost(whole).macs
        cut = {m: onnxslim.prune(whole, macs=options.macs, multiple=m).graph for m in options.multiples}
        models = {"whole": whole, **{str(m): graph for m, graph in cut.items()}}
        times = onnxslim.measure_latency(models, batch=options.batch, repeats=options.repeats)
        cells = [f"{onnxslim.cost(graph).macs / macs:.3f}, {times[str(m)].ratio:.2f}" for m, graph in cut.items()]
        print(f"| {path.stem} | {times['whole'].median_ms:.3f} | {' | '.join(cells)} |", flush=True)
        slow |= any(times[str(m)].ratio >= 1 for m in options.multiples if m % 8 == 0)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
