"""An error keeps its four parts on its way between processes."""

import pickle

from regscale.checkpoint import LeaseLost
from regscale.errors import RegscaleError


def test_it_reads_as_one_sentence_of_four_parts() -> None:
    error = RegscaleError("a.yaml: seed", "is not a number", found="'x'", fix="Give a number.")
    assert str(error) == "a.yaml: seed: is not a number; found 'x'. Give a number."


def test_it_survives_a_pickle() -> None:
    for kind in (RegscaleError, LeaseLost):
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
