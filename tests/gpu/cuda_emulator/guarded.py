"""Memory that ends, or starts, at a page that faults: what reads or writes one byte outside is stopped at once."""

from __future__ import annotations

import ctypes
import mmap

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(size: int, at_end: bool = True) -> memoryview:
    """`size` bytes right before (`at_end`) or right behind such a page; the page on the other side faults too."""
    page = mmap.PAGESIZE
    body = max(1, -(-size // page)) * page
    region = mmap.mmap(-1, body + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for edge in (0, page + body):
        if _libc.mprotect(ctypes.c_void_p(address + edge), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    start = page + (body - size if at_end else 0)
    return memoryview(region)[start : start + size]
