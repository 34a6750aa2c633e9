"""An error keeps its four parts on its way between processes."""

import pickle
import sys

import pytest

from regscale import log
from regscale.checkpoint import LeaseLost
from regscale.config import Invalid
from regscale.errors import RegscaleError


def test_it_reads_as_one_sentence_of_four_parts() -> None:
    error = RegscaleError("a.yaml: seed", "is not a number", found="'x'", fix="Give a number.")
    assert str(error) == "a.yaml: seed: is not a number; found 'x'. Give a number."


def test_it_survives_a_pickle() -> None:
    for kind in (RegscaleError, LeaseLost, Invalid):
        error = kind("here", "is wrong", found=3, fix="Mend it.")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert (copy.where, copy.what, copy.found, copy.fix) == (
            "here",
            "is wrong",
            "3",
            "Mend it.",
        )


def test_a_command_tells_a_wrong_value_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is found where no file or full key is known."""

    def main(_: list[str]) -> None:
        raise Invalid("layer", "is within 0 to 3", found=4, fix="-1 is the last.")

    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(log, "set_up", lambda **_: None)  # the handlers of other tests stay
    with pytest.raises(SystemExit) as ended:
        log.run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: layer: is within 0 to 3; found 4. -1 is the last.\n"
