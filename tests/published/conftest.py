"""Published-looking files of random weights."""

import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regscale.layers.position import grid_table, token_table
from regscale.published import Architecture, shapes

State = dict[str, Tensor]
MakeState = Callable[[Architecture], State]


def _state(model: Architecture) -> State:
    """Random weights; the table of places is the published one."""
    state = {}
    for name, shape in shapes(model).items():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        state[name] = torch.randn(shape, generator=g) * 0.2
    if model.latent_side is not None:
        side = model.latent_side // model.patch_size
        token = [token_table(1, model.hidden_size)] if model.token_width else []
        places = torch.cat([*token, grid_table(side, side, model.hidden_size)])
        state["pos_embed"] = places[None]
    return state


@pytest.fixture(scope="session")
def make_state() -> MakeState:
    return _state
