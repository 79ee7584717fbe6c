"""What a teacher's cache costs: memory, disk and seconds, for so many images, views and values of the teacher.

    python benchmarks/teacher_cache.py [--images 45000] [--views 8] [--limit 500]

Three values of a small teacher, of synthetic images: the logits, pooled features and a whole feature map. All views are
written, then an epoch of each is read in random order. Prints a line a part; exit code 1 where the process ever held
more memory than the limit, in megabytes: its own and what it had mapped of files, images, teacher and runtime included.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxslim.builders import small_cnn
from onnxslim.data import ArrayDataset, Augment, Loader, Preprocess
from onnxslim.stages.base import prepared
from onnxslim.training.teacher_cache import TeacherCache

TAPS = ("", "pool.flat", "conv2.relu")
BATCH = 128


def peak() -> float:
    """Megabytes of memory, at most, that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--limit", type=float, default=500.0, help="megabytes")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, 16, 16, 3), np.uint8)
    data = ArrayDataset({"image": images, "label": np.arange(options.images) % 10})
    teacher = prepared(small_cnn((8, 16), classes=10, image=(3, 16, 16)))
    loader = Loader(data, "image", Preprocess(), Augment(pad=2, crop=True), BATCH, seed=0, views=options.views)
    print(f"{options.images:,} images, {options.views} views, {len(TAPS)} values; before: {peak():.0f} MB", flush=True)
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        cache = TeacherCache(teacher, loader, Path(folder), TAPS)
        began = time.perf_counter()
        cache.prepare()
        size = sum(path.stat().st_size for path in cache.folder.iterdir()) / 1e6
        print(
            f"written: {size:,.0f} MB on disk, {time.perf_counter() - began:.0f} s; at most {peak():.0f} MB", flush=True
        )
        began = time.perf_counter()
        for view in range(options.views):
            order = rng.permutation(options.images)
            for start in range(0, options.images - BATCH + 1, BATCH):
                indices = order[start : start + BATCH]
                for tap in TAPS:
                    cache.outputs(indices, np.full(BATCH, view), tap)
        rate = options.views * options.images / (time.perf_counter() - began)
        print(f"read in random order: {rate:,.0f} images/s; at most {peak():.0f} MB", flush=True)
    print(f"{'within' if peak() <= options.limit else 'above'} {options.limit:.0f} MB")
    return int(peak() > options.limit)


if __name__ == "__main__":
    sys.exit(main())
