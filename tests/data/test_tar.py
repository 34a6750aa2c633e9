"""The walk over a tar's headers: it agrees with `tarfile`, and names what `tarfile` passes over."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.data._tar import BLOCK, Damage, Member, member_at, split_name, walk
from tests.data.packing import overwrite, pack, sample

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def walked(content: bytes) -> tuple[list[Member], list[Damage]]:
    found = list(walk(lambda at, length: content[at : at + length], len(content)))
    members = [item for item in found if isinstance(item, Member)]
    return members, [item for item in found if isinstance(item, Damage)]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return pack(tmp_path / "x.tar", [sample(i) for i in range(4)])


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.text("abcé/-", min_size=1, max_size=300)
        .map(lambda text: "/".join(part for part in text.split("/") if part))
        .filter(lambda text: text),
        max_size=6,
    ),
    sizes=st.lists(st.integers(0, 2000), min_size=6, max_size=6),
    format=st.sampled_from(FORMATS[1:]),
)
def test_it_finds_what_tarfile_finds(names: list[str], sizes: list[int], format: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, size in zip(names, sizes, strict=False):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    members, damage = walked(file.getvalue())
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(m.name, m.start, m.size) for m in members] == expected
    assert not damage


@pytest.mark.parametrize("format", FORMATS)
def test_headers_lead_back_to_the_name(tmp_path: Path, format: int) -> None:
    key = "/".join(["folder-of-a-class"] * 7) + "/image"
    content = pack(tmp_path / "x.tar", [(key, {"cls": b"7"})], format=format).read_bytes()
    (member,), _ = walked(content)
    assert member_at(content[member.head : member.start]) == (f"{key}.cls", 1)
    assert split_name(member.name) == (key, "cls")


def test_a_size_in_base_256_is_read(shard: Path) -> None:
    header = bytearray(shard.read_bytes()[:BLOCK])
    size = int(header[124:135], 8)
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    before = walked(shard.read_bytes())
    overwrite(shard, 0, bytes(header))
    assert walked(shard.read_bytes()) == before


@pytest.mark.parametrize("stated", ["9" * 5000, "\u0661"], ids=["endless", "Arabic"])
def test_a_size_in_pax_that_is_no_number_leaves_the_header_s(stated: str) -> None:
    """int() raises above 4,300 digits, and takes those of any script."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.cls", {"size": stated}), ("b.cls", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, headers
            tar.addfile(info, io.BytesIO(b"123"))
    members, damage = walked(file.getvalue())
    assert [(member.name, member.size) for member in members] == [("a.cls", 3), ("b.cls", 3)]
    assert not damage


def test_a_cut_inside_a_member_names_member_and_bytes(shard: Path) -> None:
    members, _ = walked(shard.read_bytes())
    cut = members[7]
    kept, damage = walked(shard.read_bytes()[: cut.start + 1])
    assert kept == members[:7]
    what = f"is cut inside member 's00001.txt': 1 of its {cut.size} bytes are there"
    assert damage == [Damage(cut.start, what, "s00001")]


@pytest.mark.parametrize("tail", [b"", b"s00002.png", bytes(512)], ids=["0", "10", "zeros"])
def test_a_cut_on_a_boundary_is_noticed(shard: Path, tail: bytes) -> None:
    members, _ = walked(shard.read_bytes())
    end = members[10].head
    kept, damage = walked(shard.read_bytes()[:end] + tail)
    assert kept == members[:10]
    assert [d.byte for d in damage] == [end]
    assert "is cut" in damage[0].what
    assert "mark of the archive's end" in damage[0].what


def test_a_header_of_zeros_loses_its_member_and_no_other(shard: Path) -> None:
    members, _ = walked(shard.read_bytes())
    overwrite(shard, members[6].head, bytes(BLOCK))
    kept, damage = walked(shard.read_bytes())
    assert kept == members[:6] + members[7:]
    (only,) = damage
    assert only.byte == members[6].head
    assert f"header of zeros, with data after it from byte {members[6].start:,}" in only.what


def test_a_damaged_header_loses_its_member_and_no_other(shard: Path) -> None:
    members, _ = walked(shard.read_bytes())
    overwrite(shard, members[6].head + 3, b"?")
    kept, damage = walked(shard.read_bytes())
    assert kept == members[:6] + members[7:]
    assert damage == [Damage(members[6].head, "has a damaged header")]


def test_an_empty_file_and_files_of_another_type_are_named() -> None:
    assert walked(b"") == ([], [Damage(0, "is empty")])
    assert "gzip" in walked(b"\x1f\x8b" + bytes(2000))[1][0].what
    assert "JPEG" in walked(b"\xff\xd8" + b"x" * 2000)[1][0].what
    assert "is no tar archive but something else" in walked(b"<html>" * 200)[1][0].what


@pytest.mark.parametrize("name", ["../../etc/x.jpg", "/etc/x.jpg", "a/../../x.jpg", "a\\x.jpg"])
def test_a_path_that_leads_outside_is_reported_and_left_out(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "x.tar", [(name.removesuffix(".jpg"), {"jpg": b"x"}), sample(1)])
    members, damage = walked(path.read_bytes())
    assert len(members) == 5
    assert "leads outside" in damage[0].what


@pytest.mark.parametrize(("kind", "spoken"), [(b"1", "hard link"), (b"2", "symbolic"), (b"3", "")])
def test_what_is_no_file_is_reported(tmp_path: Path, kind: bytes, spoken: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("folder/a.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    members, damage = walked((tmp_path / "x.tar").read_bytes())
    assert not members
    assert [d.sample for d in damage] == ["folder/a"]
    assert spoken in damage[0].what


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_makes_it_fail_or_run_on(data: st.DataObject) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"k{i}" * 60 * (i + 1) + ".jpg")
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    members, damage = walked(bytes(content[:cut]))
    assert len(members) + len(damage) < 40
    assert all(m.start + m.size <= cut for m in members)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.JPG", ("a", "jpg")),
        ("n01/a.moments.npy", ("n01/a", "moments.npy")),
        ("v1.0/a.cls", ("v1.0/a", "cls")),
        ("README", None),
        (".hidden.jpg", None),
        ("__meta__.json", None),
    ],
)
def test_a_field_begins_at_the_first_dot(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts
