"""Which memory the C library of Linux holds for tensors that come and go: more than they need.

A model of the allocator of glibc (malloc/malloc.c): blocks of one growing heap, each request in the smallest
free block that holds it; what is at least as large as a threshold in pages of its own, which are given
back when it is freed. The threshold grows with what is freed.

PyTorch asks for aligned memory. In front of a block and behind it a few bytes stay over; small objects take
them, of which a step makes tens of thousands. So a freed block cannot grow together with what is beside
it, and is too small for the next request of its own size, as aligning takes some bytes. In a step of three
blocks of SAM ViT-B, 202 MiB of living tensors took 278 MiB of heap; the same requests without those below
256 bytes took 221.
"""

from __future__ import annotations

import bisect

ALIGNMENT = 64
"""Bytes; of a tensor's memory in PyTorch."""
HEADER = 16
"""Bytes of a block in front of what is asked for."""
LEAST = 32
"""Bytes of the smallest block."""
SMALL = 256
"""Bytes of a leftover up to which small objects take it."""
PAGE = 4096
TOP_PAD = 128 * 1024
"""Bytes that the heap grows by more than is needed."""
THRESHOLD = 128 * 1024
"""Bytes from which a request gets pages of its own, at the start."""
MAX_THRESHOLD = 32 * 2**20
"""Bytes that the threshold never passes."""


class Heap:
    """The memory held for blocks of given sizes; in bytes, at addresses from 0."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = 0
        self._top = 0
        """From here to the end nothing was ever used, or all is free."""
        self._threshold = THRESHOLD
        self._blocks: dict[int, int] = {}
        self._free: dict[int, int] = {}
        """Start -> size."""
        self._free_ends: dict[int, int] = {}
        """End -> start."""
        self._by_size: list[tuple[int, int]] = []
        self._pages: dict[int, int] = {}
        """Key below 0 -> size; a key is never used again."""
        self._num_keys = 0
        self._mapped = 0

    def allocate(self, size: int) -> int:
        """Memory for so many bytes.

        Returns:
            The key to free it by.
        """
        own = _round_up(size + HEADER // 2, 16)
        needed = own + ALIGNMENT + LEAST
        place = bisect.bisect_left(self._by_size, (needed, -1))
        if place < len(self._by_size):
            length, start = self._by_size[place]
            self._remove(start)
            return self._place(start, start + length, own)
        if self._end - self._top < needed:
            if needed >= self._threshold:
                self._num_keys += 1
                self._pages[-self._num_keys] = _round_up(needed, PAGE)
                self._mapped += _round_up(needed, PAGE)
                self._note()
                return -self._num_keys
            self._end = _round_up(self._top + needed + TOP_PAD, PAGE)
            self._note()
        key = self._place(self._top, self._end, own, is_top=True)
        self._top = key + own
        return key

    def free(self, key: int) -> None:
        """Gives memory back that `allocate` gave."""
        if key < 0:
            size = self._pages.pop(key)
            self._mapped -= size
            if size <= MAX_THRESHOLD:
                self._threshold = max(self._threshold, size)
            return
        start, size = key, self._blocks.pop(key)
        before = self._free_ends.get(start)
        if before is not None:
            size += self._remove(before)
            start = before
        if start + size in self._free:
            size += self._remove(start + size)
        if start + size == self._top:
            self._top = start
        else:
            self._add(start, size)

    def _place(self, start: int, end: int, own: int, *, is_top: bool = False) -> int:
        """A block of a size within a free one, aligned; what stays over is free where it is large enough."""
        lead = -(start + HEADER) % ALIGNMENT
        if 0 < lead < LEAST:
            lead += ALIGNMENT
        self._leave(start, lead)
        start += lead
        if not is_top:
            if end - start - own < LEAST:
                own = end - start
            self._leave(start + own, end - start - own)
        self._blocks[start] = own
        return start

    def _leave(self, start: int, size: int) -> None:
        if size > SMALL:
            self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        self._free[start] = size
        self._free_ends[start + size] = start
        bisect.insort(self._by_size, (size, start))

    def _remove(self, start: int) -> int:
        size = self._free.pop(start)
        del self._free_ends[start + size]
        del self._by_size[bisect.bisect_left(self._by_size, (size, start))]
        return size

    def _note(self) -> None:
        self.peak = max(self.peak, self._end + self._mapped)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
