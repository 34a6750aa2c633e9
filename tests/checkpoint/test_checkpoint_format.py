"""What is written can be read: by ranges, on another number of readers, by other libraries."""

import itertools
import json
import threading

import pytest
import torch
from safetensors import safe_open

from regscale.checkpoint import Piece, Reader, Record, begin, commit, save, write_part
from regscale.errors import RegscaleError


def test_every_dtype_and_shape_comes_back(tmp_path, tools):
    tensors = tools.tensors(3)
    folder = save(tmp_path, [Piece.whole(n, t) for n, t in tensors.items()], tools.record(3))
    assert folder.name == "step-00000003"
    assert tools.same(tools.load(folder), tensors)


def test_a_record_comes_back(tmp_path, tools):
    reader, record = Reader(tools.save(tmp_path, 7)), tools.record(7)
    assert (reader.step, reader.samples) == (7, record.samples)
    assert (reader.config, reader.progress) == (record.config, record.progress)
    assert reader.partition == "flat ranges"
    assert reader.names() == sorted(tools.tensors(7))
    assert reader.dtype("model/half") == torch.bfloat16
    assert reader.shape("model/empty") == (0, 4)


@pytest.mark.parametrize("writers", [1, 2, 5])
@pytest.mark.parametrize("readers", [1, 3, 4])
def test_any_number_of_readers_reads_what_any_number_of_writers_wrote(
    tmp_path, tools, writers, readers
):
    tensors = tools.tensors(1)
    reader = Reader(tools.save(tmp_path, 1, writers=writers))
    for name, tensor in tensors.items():
        share = -(-tensor.numel() // readers)
        edges = [min(i * share, tensor.numel()) for i in range(readers + 1)]
        parts = [reader.range(name, a, b) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(parts), tensor.reshape(-1))


@pytest.mark.parametrize("block_bytes", [64, 1000, 2**20])
def test_every_range_of_a_tensor_is_right(tmp_path, tools, block_bytes):
    flat = tools.tensors(1)["model/weight"].reshape(-1)
    reader = Reader(tools.save(tmp_path, 1, block_bytes=block_bytes))
    for start in range(0, flat.numel(), 7):
        for stop in (start, start + 1, min(start + 40, flat.numel()), flat.numel()):
            assert torch.equal(reader.range("model/weight", start, stop), flat[start:stop])


def test_the_safetensors_library_opens_the_files(tmp_path, tools):
    folder, tensors = tools.save(tmp_path, 1, writers=2), tools.tensors(1)
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, span = key.rpartition("[")
                found.setdefault(name, []).append((int(span.split(":")[0]), file.get_tensor(key)))
    for name, pieces in found.items():
        joined = torch.cat([values for _, values in sorted(pieces, key=lambda p: p[0])])
        assert torch.equal(joined, tensors[name].reshape(-1))
    assert found.keys() == {name for name, tensor in tensors.items() if tensor.numel()}


def test_manifest_and_indexes_are_plain_json(tmp_path, tools):
    folder = tools.save(tmp_path, 1)
    assert len(list(folder.iterdir())) == 5
    for path in folder.glob("*.json"):
        assert next(iter(json.loads(path.read_text()))) == "digest"


def test_threads_write_the_parts_of_one_checkpoint(tmp_path, tools):
    tensors, parts = tools.tensors(1), ["", "", ""]
    folder = begin(tmp_path, 1)

    def write(i: int) -> None:
        parts[i] = write_part(folder, i, tools.cut(tensors, i, 3))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tools.same(tools.load(commit(folder, parts, tools.record(1))), tensors)


@pytest.mark.parametrize(
    ("spans", "problem"), [([(0, 4), (5, 9)], "a gap"), ([(0, 5), (4, 9)], "an overlap")]
)
def test_pieces_cover_a_tensor_exactly_once(tmp_path, tools, spans, problem):
    folder = begin(tmp_path, 1)
    pieces = [Piece("w", (3, 3), a, b, torch.zeros(b - a)) for a, b in spans]
    with pytest.raises(RegscaleError, match=f"{problem} at element 4"):
        commit(folder, [write_part(folder, 0, pieces)], tools.record(1))
    assert not list(tmp_path.iterdir())


def test_writers_agree_on_shapes(tmp_path, tools):
    folder = begin(tmp_path, 1)
    first = write_part(folder, 0, [Piece("w", (4,), 0, 2, torch.zeros(2))])
    other = write_part(folder, 1, [Piece("w", (5,), 2, 5, torch.zeros(3))])
    with pytest.raises(RegscaleError, match="agree on w"):
        commit(folder, [first, other], tools.record(1))


def test_a_part_of_another_save_is_not_committed(tmp_path, tools):
    folder = begin(tmp_path, 1)
    part = write_part(folder, 0, tools.cut(tools.tensors(1), 0, 1))
    with pytest.raises(RegscaleError, match="is not what writer 0 wrote"):
        commit(folder, [part[::-1]], tools.record(1))


def test_an_unknown_name_is_answered_with_a_near_one(tmp_path, tools):
    with pytest.raises(RegscaleError, match=r"no tensor 'model/weigth'.*nearest model/weight"):
        Reader(tools.save(tmp_path, 1)).tensor("model/weigth")


def test_a_dtype_without_a_code_is_refused(tmp_path, tools):
    with pytest.raises(RegscaleError, match=r"w: has a dtype.*complex64"):
        save(tmp_path, [Piece.whole("w", torch.zeros(2, dtype=torch.complex64))], tools.record(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{1: "x"}, {"x": torch.ones(1)}, {"x": [object()]}])
def test_a_config_holds_only_what_json_gives_back(config):
    with pytest.raises(AssertionError, match="JSON"):
        Record(step=1, samples=1, config=config)
