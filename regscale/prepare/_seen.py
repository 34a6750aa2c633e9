"""The first samples of a run, each process its part of them: what statistics are taken of."""

from collections.abc import Iterator
from contextlib import closing

from regscale.cluster import Cluster
from regscale.data import Source, batches
from regscale.progress import progress
from regscale.types import Batch


def first_samples(
    source: Source, count: int, *, seed: int, batch_size: int, num_workers: int, cluster: Cluster
) -> Iterator[Batch]:
    """Batches on this process's device, `batch_size` samples at most; over all processes they are
    the samples 0 to `count` - 1 of the run, each once."""
    world = batch_size * cluster.world_size
    stream = batches(
        source,
        None,
        seed=seed,
        start=0,
        batch_size=world,
        rank=cluster.rank,
        world_size=cluster.world_size,
        num_workers=num_workers,
    )
    with closing(stream), progress(count, what="reading", unit="images") as advance:
        for begin in range(0, count, world):
            left = count - begin - cluster.rank * batch_size
            if left > 0:
                yield next(next(stream).split(left)).to(cluster.device)
            advance(min(world, count - begin))
