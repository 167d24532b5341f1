"""Python's searches for cyclic garbage, paused where many objects are made that stay.

Each search looks at what was made so far, again and again: without them Lance is imported in two thirds of the time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause them, in the whole process."""
    is_enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if is_enabled:
            gc.enable()
