"""Which settings may change when a run resumes."""

import pytest

from regscale.errors import RegscaleError
from regscale.training.state import check_same_run

DATA = {
    "kind": "shards",
    "urls": ["here/*.tar"],
    "cache": "",
    "cache_gib": 200.0,
    "timeout_seconds": 120.0,
    "policy": "fail",
    "mode": "auto",
    "fields": ["images"],
    "flip": False,
}
ELSEWHERE = {
    "urls": ["s3://there/*.tar"],
    "cache": "/scratch",
    "cache_gib": 20.0,
    "timeout_seconds": 600.0,
    "policy": "skip",
}
BINDING = {"mode": "window", "fields": ["moments"], "flip": True, "kind": "image_folder"}


def mix(data: dict[str, object]) -> dict[str, object]:
    return {"kind": "mix", "sources": {"photos": data, "drawings": DATA}, "weights": {"photos": 1}}


@pytest.mark.parametrize("change", ELSEWHERE)
def test_data_may_move_between_starts(change: str) -> None:
    moved = {**DATA, change: ELSEWHERE[change]}
    check_same_run({"data": DATA}, {"data": moved}, "run")
    check_same_run({"data": mix(DATA)}, {"data": mix(moved)}, "run")


@pytest.mark.parametrize("change", BINDING)
def test_what_is_read_and_in_which_order_may_not(change: str) -> None:
    other = {**DATA, change: BINDING[change]}
    with pytest.raises(RegscaleError, match=rf"was made with another data\.{change}"):
        check_same_run({"data": DATA}, {"data": other}, "run")
    with pytest.raises(RegscaleError, match=rf"another data\.sources\.photos\.{change}"):
        check_same_run({"data": mix(DATA)}, {"data": mix(other)}, "run")
