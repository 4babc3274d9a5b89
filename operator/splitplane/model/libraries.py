"""torch, with all of it that tracing needs, imported in one go and with the garbage collector at rest.

The imports make 600,000 objects that stay: looking for garbage among them takes a fifth of a pod's start.
"""

import gc

gc.disable()
try:
    import torch.export._trace
finally:
    gc.enable()


def use_threads(threads: int) -> None:
    """Have torch compute an operation on this many threads, and no two operations side by side.

    Raises ``RuntimeError`` when torch has computed something already.
    """
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
