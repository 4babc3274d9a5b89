"""Types of arrays over candidate plans."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Halves = NDArray[np.int32]
Bools = NDArray[np.bool_]
Bits = NDArray[np.uint8]
