"""The Open Inference Protocol's datatypes as torch names them."""

import torch

_BY_NAME = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_BY_DTYPE = {dtype: name for name, dtype in _BY_NAME.items()}


def torch_datatype(name: str) -> torch.dtype:
    """The torch dtype of an OIP datatype. Raises ``KeyError`` for ``BYTES``, which no tensor holds."""
    return _BY_NAME[name]


def oip_datatype(dtype: torch.dtype) -> str | None:
    """The OIP datatype of a torch dtype; ``None`` for those that the protocol does not know, such as complex."""
    return _BY_DTYPE.get(dtype)
