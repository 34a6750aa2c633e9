"""An image head that answers with clean latents."""

from dataclasses import replace

import pytest
import torch

from regscale.config import Invalid
from regscale.models._clean import velocity_of
from regscale.path import build
from regscale.types import Entangled, Times
from tests.models.test_sit import TINY, run, tiny


def test_clean_latents_become_the_velocity_of_the_linear_path() -> None:
    g = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    path, times = build("linear"), Times(torch.tensor([0.25, 0.6, 1.0], dtype=torch.float64), ())
    noisy = path.interpolate(Entangled(clean, ()), Entangled(noise, ()), times).latents
    made = velocity_of(clean, noisy, times.image, least=0.25)
    torch.testing.assert_close(made, noise - clean)


def test_the_head_answers_with_clean_latents_above_a_time_and_nothing_else_changes() -> None:
    plain, clean = tiny(), tiny(replace(TINY, clean_above=0.25))
    assert clean.state_dict().keys() == plain.state_dict().keys()
    for model in (plain, clean):
        start = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(model.final_layer.linear.weight, generator=start)
    answer, found = run(plain), run(clean)
    g = torch.Generator().manual_seed(0)  # as in `run`
    noisy = torch.randn(2, *plain.parts.latent_shape, generator=g)
    torch.randn(2, 1, 16, generator=g)
    time = torch.rand(2, generator=g)
    torch.testing.assert_close(found.latents, velocity_of(answer.latents, noisy, time, least=0.25))
    assert torch.equal(found.tokens[0], answer.tokens[0])


@pytest.mark.parametrize("least", [0.0, 1.5])
def test_a_time_from_which_the_head_answers_lies_between_the_ends(least: float) -> None:
    with pytest.raises(Invalid, match=r"within \(0, 1\]"):
        replace(TINY, clean_above=least)
