"""Data: image folders, zips, npz and iterables as `Dataset`s; transforms; the prefetching loader."""

from onnxslim.data.dataset import LABEL, ArrayDataset, Dataset, Subset, input_array, load_all
from onnxslim.data.fitting import ModelInput, fitted
from onnxslim.data.iterables import from_iterable
from onnxslim.data.loader import Batch, Loader, evaluation_batches, prefetch
from onnxslim.data.opening import Source, check_fits, open_dataset
from onnxslim.data.progress import ProgressBar, ProgressCallback, Say, time_in_words
from onnxslim.data.samples import Samples
from onnxslim.data.transforms import Augment, AxisOrder, Preprocess

__all__ = [
    "LABEL",
    "ArrayDataset",
    "Augment",
    "AxisOrder",
    "Batch",
    "Dataset",
    "Loader",
    "ModelInput",
    "Preprocess",
    "ProgressBar",
    "ProgressCallback",
    "Samples",
    "Say",
    "Source",
    "Subset",
    "check_fits",
    "evaluation_batches",
    "fitted",
    "from_iterable",
    "input_array",
    "load_all",
    "open_dataset",
    "prefetch",
    "time_in_words",
]
