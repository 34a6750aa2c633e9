"""Fixed tables and the precision of linear and normalisation layers."""

import pytest
import torch

from regscale.layers.linear import LayerNorm, Linear
from regscale.layers.position import grid_table, sincos, time_features, token_table


def test_tables_tell_places_apart() -> None:
    table = grid_table(3, 5, 32)
    assert table.shape == (15, 32)
    assert torch.equal(table[0, :16], table[5, :16])  # one column: the same first half
    assert torch.equal(table[0, 16:], table[1, 16:])  # one row: the same second half
    assert len({tuple(row.tolist()) for row in table}) == 15
    assert float(token_table(1, 32).abs().max()) == 0
    assert len({tuple(row.tolist()) for row in token_table(4, 32)}) == 4


def test_sine_and_cosine_are_of_position_times_frequency() -> None:
    table = sincos(torch.tensor([3]), 8)[0]
    omega = [10000 ** (-i / 4) for i in range(4)]
    expected = torch.tensor([3 * w for w in omega], dtype=torch.float64)
    torch.testing.assert_close(table, torch.cat([expected.sin(), expected.cos()]))


def test_times_are_embedded_in_fp32_whatever_their_dtype() -> None:
    made = time_features(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert made.dtype == torch.float32
    assert made.shape == (2, 256)
    assert torch.equal(made[0], torch.cat([torch.ones(128), torch.zeros(128)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_weights_and_gathered_copies_give_the_same_bits(dtype: torch.dtype) -> None:
    """An engine that casts at use and one that gathers low-precision copies agree."""
    layer = Linear(16, 8)
    layer.compute_dtype = dtype
    x = torch.randn(4, 16)
    a = layer(x)
    copied = Linear(16, 8).to(dtype)
    copied.load_state_dict(layer.state_dict())
    assert a.dtype == dtype
    assert torch.equal(a, copied(x))
    a.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_normalisation_has_fp32_statistics() -> None:
    x = (torch.randn(4, 64) + 500).bfloat16()  # bf16 sums of such numbers lose the deviation
    made = LayerNorm(64)(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.std(dim=1, unbiased=False), torch.ones(4), rtol=1e-3, atol=0)
