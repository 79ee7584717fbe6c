"""`flush_denormals`: one thread treats denormal numbers as zero.

Weight decay and momentum drive the weights of dead channels into denormals (below 1.2e-38), which x86
multiplies a hundred times slower. ONNX Runtime's own option (`session.set_denormal_as_zero`) acts on
the thread that creates the process's first session, and only there: whether it works depends on who
came first, and it would change the caller's numpy. So worker threads set their own register instead.
"""

from __future__ import annotations

import ctypes
import platform
import sys

__all__ = ["flush_denormals"]

# glibc's fenv_t: its size in bytes, where the control register lies, and its bits (x86: FTZ and DAZ; Arm: FZ).
_LAYOUTS = {"x86_64": (32, 28, (1 << 15) | (1 << 6)), "aarch64": (8, 0, 1 << 24)}


def flush_denormals() -> bool:
    """Denormal operands and results are zero from now on, in the calling thread alone (threads it
    starts inherit that). Returns whether this platform can; elsewhere nothing happens."""
    layout = _LAYOUTS.get(platform.machine())
    if layout is None or not sys.platform.startswith("linux"):
        return False
    size, offset, bits = layout
    try:
        library = ctypes.CDLL("libm.so.6")
        environment = ctypes.create_string_buffer(size)
        if library.fegetenv(environment) != 0:
            return False
        register = ctypes.c_uint32.from_buffer(environment, offset)
        register.value |= bits
        return bool(library.fesetenv(environment) == 0)
    except (OSError, AttributeError):  # another C library
        return False
