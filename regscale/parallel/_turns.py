"""Who writes what all hold: tensors dealt to the rank that has the least so far."""

from collections.abc import Iterable


def turns(sizes: Iterable[int], ranks: int) -> list[int]:
    """The rank of each tensor. The same on every rank; within a tensor of an even share."""
    loads, dealt = [0] * ranks, []
    for size in sizes:
        rank = min(range(ranks), key=loads.__getitem__)
        loads[rank] += size
        dealt.append(rank)
    return dealt
