"""torch, with all of it that tracing needs, imported in one go: 600,000 objects that stay."""

from splitplane.starting import importing

with importing():
    import torch.export._trace


def use_threads(threads: int) -> None:
    """Have torch compute an operation on this many threads, and no two operations side by side.

    Raises ``RuntimeError`` when torch has computed something already.
    """
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
