"""Ranges of many ranks become few files, few pieces and small indexes."""

from benchmarks.checkpoint_plan import plan, shapes_of
from regscale.checkpoint.group import group_of


def test_ranks_are_grouped_evenly_and_writers_numbered_without_gaps():
    for ranks in range(1, 40):
        for max_writers in (1, 2, 3, 7, 64):
            groups = [group_of(rank, ranks, max_writers) for rank in range(ranks)]
            assert all(group.first <= rank < group.stop for rank, group in enumerate(groups))
            distinct = sorted(set(groups))
            assert [group.writer for group in distinct] == list(range(min(ranks, max_writers)))
            sizes = [group.stop - group.first for group in distinct]
            assert sum(sizes) == ranks
            assert max(sizes) - min(sizes) <= 1


def test_a_planned_checkpoint_has_a_piece_for_each_tensor_and_writer(tmp_path):
    figures = plan(shapes_of(16, 2), 24, 3, tmp_path)
    assert figures["files"] == 3 + 3 + 1
    assert figures["data_bytes"] >= 4 * 4 * figures["parameters"]
    tensors = 4 * len(shapes_of(16, 2))
    assert tensors < figures["pieces"] <= 3 * tensors
    assert figures["ranges_of_ranks"] > 4 * figures["pieces"]
