"""What one more point costs in a store of evaluations: of none, and of 10,000 and 100,000 that stand there already.

    python benchmarks/store.py [--points 200] [--folder .]

The stores take turns, a point each; each line is synced to disk, so the folder's disk is what is measured. Ends with 1
where a point costs more than 1.5 times as much in front of 10,000 others as in an empty store, by the median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from onnxslim.evaluation import Store

MOST = 1.5


def filled(path: Path, points: int) -> Store:
    """A store with so many points, written at once."""
    Store(path).add("0" * 64, 0.5, 1.0)
    line = path.read_bytes()
    path.write_bytes(line * points)
    return Store(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="added to each store")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        stores = {n: filled(Path(scratch) / str(n), n) for n in (0, 10_000, 100_000)}
        seconds: dict[int, list[float]] = {n: [] for n in stores}
        for i in range(options.points):
            for n, store in stores.items():
                start = time.perf_counter()
                store.add(f"{i:064}", 0.5, 1.0)
                seconds[n].append(time.perf_counter() - start)
        begun = time.perf_counter()
        Store(Path(scratch) / "10000")
        reading = time.perf_counter() - begun
    medians = {n: statistics.median(found) for n, found in seconds.items()}
    for n, median in medians.items():
        print(f"{n:7,} points there: {1e3 * median:.3f} ms for one more ({median / medians[0]:.2f} of an empty store)")
    print(f"10,000 points are read in {reading:.2f} s")
    return int(medians[10_000] > MOST * medians[0])


if __name__ == "__main__":
    sys.exit(main())
