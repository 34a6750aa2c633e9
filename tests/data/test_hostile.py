"""Whatever a field holds, its decoder returns a sample or says that the field is unusable."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.data._fields import Decoder, Sample
from regscale.data._images import Unusable
from tests.data.packing import npy, picture

FIELDS = {
    "png": ("images", picture(0)),
    "jpg": ("images", picture(0, kind="JPEG")),
    "webp": ("images", picture(0, kind="WEBP")),
    "cls": ("labels", b"7"),
    "json": ("labels", json.dumps({"label": 7, "captions": ["a", "b"]}).encode()),
    "txt": ("captions", b"a cat"),
    "moments.npy": ("moments", npy(np.ones((2, 8, 2, 2), np.float16))),
    "vit.npy": ("vit", npy(np.ones((2, 1, 6), np.float32))),
}


def decode(member: str, payload: bytes) -> Sample:
    decoder = Decoder(
        fields=(FIELDS[member][0],), size=8, crop="centre", flip=False, seed=0, caption_weights={}
    )
    return decoder.decode("key", {member: memoryview(payload)}, 0)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), member=st.sampled_from(sorted(FIELDS)))
def test_damaged_bytes_are_a_sample_or_an_unusable_field(data: st.DataObject, member: str) -> None:
    payload = bytearray(FIELDS[member][1])
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (payload, payload[: data.draw(st.integers(0, len(payload)))]):
        try:
            found = decode(member, bytes(damaged))
        except Unusable:
            continue
        assert isinstance(found, Sample)


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HOSTILE = {
    "cls of twenty digits": ("cls", b"9" * 20),
    "cls of five thousand digits": ("cls", b"9" * 5000),
    "json with a label of forty digits": ("json", b'{"label": ' + b"9" * 40 + b"}"),
    "json with a label of no number": ("json", b'{"label": NaN}'),
    "json that is deep": ("json", b'{"label":' + b"[" * 200_000),
    "negative sides": ("vit.npy", header("(-2, -3)") + bytes(48)),
    "sides beyond memory": ("vit.npy", header(f"({2**62}, 4)") + bytes(48)),
    "sides of nothing": ("moments.npy", header(f"(2, 0, {2**40}, {2**40})")),
    "a header without an end": ("vit.npy", header("(((") + bytes(48)),
    "a header that is code": ("vit.npy", header("(__import__('os').getpid(),)") + bytes(48)),
    "a type of many parts": ("vit.npy", header("(6,)", "[('a', '<f4'), ('b', '<f4')]") + bytes(48)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_an_unusable_field(name: str) -> None:
    with pytest.raises(Unusable):
        decode(*HOSTILE[name])
