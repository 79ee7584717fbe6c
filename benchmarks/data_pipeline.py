"""How fast the data pipeline is, and how long a training step waits for it.

    python benchmarks/data_pipeline.py [--data FOLDER_OR_ZIP --split train] [--step-ms 50] [--workers 2]

Without --data: random images of CIFAR-10's size. Prints images per second of one thread for each
transform, then the share of a simulated step (busy threads, as training's workers are) that was
spent waiting for its batch. The share must stay at or below 3 %.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time

import numpy as np

from onnxslim.cli.options import progress_bar
from onnxslim.data import ArrayDataset, Augment, Dataset, Loader, Preprocess, load_all, open_dataset

FULL = Augment(pad=4, crop=True, flip=True, cutout=8)
AUGMENTS = {
    "normalise only": None,
    "crop": Augment(pad=4, crop=True),
    "flip": Augment(flip=True),
    "cutout": Augment(cutout=8),
    "crop + flip + cutout": FULL,
}


def throughput(loader: Loader, batches: int) -> float:
    """Images per second of CPU time of one thread."""
    order = loader.order(0)
    start = time.thread_time()
    for step in range(batches):
        loader.make(order[step * loader.batch : (step + 1) * loader.batch], 0)
    return batches * loader.batch / (time.thread_time() - start)


def burn(seconds: float) -> None:
    """Keeps one core busy outside of the interpreter's lock, as a session's kernels do."""
    a = np.ones((256, 256), np.float32)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        a @ a


def wait_share(loader: Loader, step_s: float, steps: int, workers: int) -> float:
    """Seconds waited for batches divided by the duration of `steps` steps; the first fills the queue."""
    batches = loader.epoch(0)
    next(batches)
    waited, start = loader.waited_s, time.perf_counter()
    for _ in range(min(steps, loader.steps_per_epoch - 1)):
        next(batches)
        threads = [threading.Thread(target=burn, args=(step_s,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    duration = time.perf_counter() - start
    batches.close()
    return (loader.waited_s - waited) / duration


def dataset(arguments: argparse.Namespace) -> Dataset:
    if arguments.data is None:
        images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3)).astype(np.uint8)
        return ArrayDataset({"image": images, "label": np.arange(20_000) % 10})
    start = time.perf_counter()
    with progress_bar() as progress:
        data = open_dataset(arguments.data, arguments.split)
        load_all(data, progress)
    seconds = time.perf_counter() - start
    print(f"opened and decoded {len(data):,} images in {seconds:.1f} s ({len(data) / seconds:,.0f} a second)")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--split")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}")
    data = dataset(arguments)
    preprocess = Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    print(f"\nimages per second of one thread, batch {arguments.batch}, normalisation included")
    for name, augment in AUGMENTS.items():
        speed = throughput(Loader(data, "image", preprocess, augment, arguments.batch), arguments.steps)
        print(f"  {name:<22}{speed:>10,.0f}")
    loader = Loader(data, "image", preprocess, FULL, arguments.batch)
    share = wait_share(loader, arguments.step_ms / 1e3, arguments.steps, arguments.workers)
    print(f"\nwaited {share:.2%} of steps of {arguments.step_ms:g} ms on {arguments.workers} busy cores")


if __name__ == "__main__":
    main()
