"""torch, with all of it that tracing needs, imported in one go and with the garbage collector at rest.

The imports make 600,000 objects that stay: looking for garbage among them takes a fifth of a pod's start, and once more
each time that it is done afterwards.
"""

import atexit
import gc

gc.disable()
try:
    import torch.export._trace
finally:
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # or the interpreter's end would leave them, and native libraries complain of leaks


def use_threads(threads: int) -> None:
    """Have torch compute an operation on this many threads, and no two operations side by side.

    Raises ``RuntimeError`` when torch has computed something already.
    """
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
