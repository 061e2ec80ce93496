"""The model of the C library's heap keeps the books of what it gives out."""

from __future__ import annotations

import itertools
import random

from segtune.engine.heap import MAX_THRESHOLD, Heap

MIB = 2**20


def test_large_requests_have_pages_that_are_given_back() -> None:
    heap = Heap()
    for _ in range(3):
        heap.free(heap.allocate(2 * MAX_THRESHOLD))
    assert 2 * MAX_THRESHOLD < heap.peak < 2 * MAX_THRESHOLD + 2**14
    heap.free(heap.allocate(MIB))
    before = heap.peak
    kept = [heap.allocate(MIB // 2) for _ in range(8)]
    assert heap.peak == before, "smaller ones are below what the first one left behind"
    assert len(set(kept)) == 8


def test_a_freed_block_does_not_serve_the_next_request_of_its_size() -> None:
    heap = Heap()
    heap.free(heap.allocate(MIB))  # pages; from now on such a request goes to the heap
    first = heap.allocate(MIB - 4096)
    fence = heap.allocate(1000)
    heap.free(first)
    assert heap.allocate(MIB - 4096) > fence
    assert heap.allocate(MIB - 8192) == first


def test_blocks_never_overlap_and_the_peak_holds_them() -> None:
    heap, generator = Heap(), random.Random(0)
    heap.free(heap.allocate(MIB))
    blocks: dict[int, int] = {}
    for _ in range(500):
        if blocks and generator.random() < 0.5:
            key = generator.choice(list(blocks))
            heap.free(key)
            del blocks[key]
        else:
            size = generator.randrange(1, MIB // 8)
            blocks[heap.allocate(size)] = size
        placed = sorted(blocks.items())
        assert all(key + 16 <= other for (key, _), (other, _) in itertools.pairwise(placed))
        assert all(key + size <= other for (key, size), (other, _) in itertools.pairwise(placed))
        assert all((key + 16) % 64 == 0 for key in blocks)
        assert heap.peak >= sum(blocks.values())
