"""What a file may cause: the bounds on bytes, work and numbers that a small input can ask for, in one place.

A kilobyte can ask for gigabytes, hours or a hundred thousand threads. What it asks for is worked out before it is done,
and refused by name beyond these bounds. They are wide: no sensible input meets one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "ARCHIVE_BYTES",
    "FOLDED_BYTES",
    "FOLDED_GROWTH",
    "FOLDED_WORK",
    "IMAGE_BYTES",
    "IMAGE_PIXELS",
    "JSON_BYTES",
    "MODEL_DEPTH",
    "MOST_BATCH",
    "MOST_EPOCHS",
    "MOST_PIXELS",
    "MOST_SAMPLES",
    "MOST_SEED",
    "MOST_THREADS",
    "RECIPE_BYTES",
    "RECIPE_DEPTH",
    "RECIPE_ENTRIES",
    "RECIPE_FILES",
    "Budget",
    "Folding",
]

# ---------------------------------------------------------------- models

MODEL_DEPTH = 12
"""Bodies inside one another, as far as ONNX Runtime is asked to load them: each level takes it twice as long."""

# ---------------------------------------------------------------- texts

JSON_BYTES = 1 << 28
RECIPE_BYTES = 1 << 19
"""Of a recipe with all that it includes."""
RECIPE_FILES = 100
"""Files read for one recipe, each time one is included counted."""
RECIPE_ENTRIES = 100_000
"""Keys and values of one document, aliases written out."""
RECIPE_DEPTH = 50
"""Mappings and lists inside one another."""

# ---------------------------------------------------------------- data

ARCHIVE_BYTES = 1 << 34
"""Of arrays or members of one archive that are held in memory, unpacked."""
IMAGE_BYTES = 1 << 28
"""Of an image file."""
IMAGE_PIXELS = 1 << 26
"""Of an image."""

# ---------------------------------------------------------------- folding of constants

FOLDED_BYTES = 1 << 28
"""Of a single result, folded or not."""
FOLDED_GROWTH = 1 << 28
"""Of all results of a pipeline, what they replace taken off."""
FOLDED_WORK = 1 << 37
"""Multiply-accumulates and elements moved in a pipeline: seconds."""

# ---------------------------------------------------------------- numbers in options

MOST_BATCH = 1 << 16
MOST_EPOCHS = 1_000_000
MOST_PIXELS = 1 << 13
"""Of a side of an image, and of what is added around it."""
MOST_SAMPLES = 1 << 31
MOST_SEED = (1 << 63) - 1
MOST_THREADS = 256


@dataclass
class Budget:
    """An amount that is spent piece by piece."""

    left: int

    def spend(self, amount: int) -> bool:
        """Takes the amount off where that much is left; whether it was."""
        if amount > self.left:
            return False
        self.left -= amount
        return True


@dataclass
class Folding:
    """What is left for folding constants, for all rounds of a pipeline together."""

    work: Budget = field(default_factory=lambda: Budget(FOLDED_WORK))
    growth: Budget = field(default_factory=lambda: Budget(FOLDED_GROWTH))
