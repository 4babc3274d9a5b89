"""How calls over gRPC are refused, whatever they asked for."""

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from splitplane.runtime.inference import shortened


async def refuse(
    context: grpc.aio.ServicerContext[Any, Any],
    code: grpc.StatusCode,
    text: str,
    trailing: Sequence[tuple[str, str]] = (),
) -> NoReturn:
    """End the call with that status, its text no longer than a status may be, by the error that gRPC has for it.

    Raises ``CancelledError`` when the client has hung up meanwhile: what gRPC raises then it would log with a
    traceback, as often as clients like.
    """
    try:
        await context.abort(code, shortened(text), tuple(trailing))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
