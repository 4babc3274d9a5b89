"""Bodies that come compressed, unpacked piece by piece: of each kilobyte there may come a megabyte.

aiohttp would do it on the event loop, and go on with what is left of a body that has been refused for its size.
"""

import asyncio
import zlib

from aiohttp import hdrs, web

from splitplane.runtime.inference import InferenceError, invalid

ENCODINGS = ("gzip", "deflate")
INLINE_BYTES, PIECE_BYTES = 1 << 16, 1 << 20
"""Of what comes out: so much at once, and what is more on a thread, in pieces so large."""
MOST_MEMBERS = 2048
"""Of one gzip body: some writers begin a new one every 64 kB, or each time that they append. Empty ones take time."""
_GZIP, _ZLIB, _BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Unpacker:
    """Takes one body as it comes, and gives what it holds: of gzip all members, else one stream and nothing after."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._left, self._most, self._has_more = b"", INLINE_BYTES, False
        self._stream = zlib.decompressobj(_GZIP)
        self._has_begun, self._members = False, 1

    def feed(self, data: bytes) -> None:
        """More has come, after everything was taken out of what came before."""
        if data and not self._has_begun:
            self._has_begun = True
            if self._encoding == "deflate":
                # Of a zlib stream, as it should be, or bare, as some clients have it: the first byte tells.
                self._stream = zlib.decompressobj(_ZLIB if data[0] & 0xF == zlib.DEFLATED else _BARE)
        self._left, self._most, self._has_more = data, INLINE_BYTES, True

    async def piece(self) -> bytes:
        """The next piece; empty when more has to come. Raises :class:`InferenceError` for what is not so compressed."""
        piece = b""
        while self._has_more and not piece:
            piece = await self._next()
        return piece

    async def _next(self) -> bytes:
        try:
            if self._most == INLINE_BYTES:
                piece = self._stream.decompress(self._left, self._most)
            else:
                piece = await asyncio.to_thread(self._stream.decompress, self._left, self._most)
        except zlib.error:
            raise _not_so() from None
        if rest := self._stream.unused_data:
            self._begin_member()
            self._left, self._has_more = rest, True
        else:
            self._left, self._has_more = self._stream.unconsumed_tail, len(piece) == self._most
        self._most = PIECE_BYTES
        return piece

    def _begin_member(self) -> None:
        if self._encoding != "gzip":
            raise _not_so()
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise invalid(f"the body is gzip of more than {MOST_MEMBERS} members")
        self._stream = zlib.decompressobj(_GZIP)

    def end(self) -> None:
        """All has come. Raises :class:`InferenceError` when it ends before its compression does."""
        if not self._stream.eof:
            raise _not_so()


def encoding_of(request: web.Request) -> str:
    """The body's ``Content-Encoding``; empty for a body as it is."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    return "" if encoding == "identity" else encoding


def _not_so() -> InferenceError:
    return invalid("the body is not compressed as its Content-Encoding says")
