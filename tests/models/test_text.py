"""SiT with a text: padding never matters, a gate starts closed, rotations see distances alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regscale.conditioning import class_label, words
from regscale.config import Invalid
from regscale.layers.embedder import TextEmbedder
from regscale.layers.initial import materialise
from regscale.layers.position import rotate, rotations
from regscale.models import AlignPart, Parts, TokenPart
from regscale.models.sit import Config, SiT, build
from regscale.types import Labels, Prediction, Several, Text

TINY = Config(
    depth=2, hidden_size=32, num_heads=4, qk_norm=True, qk_norm_kind="rms", rope=True
)  # fmt: skip
LABELS = class_label.build(class_label.Config(num_classes=10, names=None))
WIDTH, POOLED = 12, 6
Shape = tuple[int, int, int]


def text_embedder(width: int) -> nn.Module:
    return TextEmbedder(WIDTH, POOLED, width)


def several(width: int) -> nn.Module:
    return nn.ModuleDict(
        {"y_embedder": LABELS.embedder(width), "txt_embedder": text_embedder(width)}
    )


SHAPE = (4, 8, 12)


def made(
    config: Config = TINY, embedder: Any = text_embedder, *, stir: bool = True, shape: Shape = SHAPE
) -> SiT:
    around = Parts(
        latent_shape=shape,
        tokens=(TokenPart(0, 1, 16),),
        aligned=(AlignPart(1, 16, 24, 0, True),),
        embedder_slot="y_embedder" if embedder == LABELS.embedder else "txt_embedder",
        embedder=embedder,
    )
    with torch.device("meta"):
        model = build(config, around)
    materialise(model, seed=0, device=torch.device("cpu"))
    if stir:
        stirred(model)
    return model


def stirred(model: nn.Module) -> None:
    """Away from the start, where blocks and heads are zero and hide what goes into them."""
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=chance)


def text(lengths: list[int], seed: int = 0) -> Text:
    chance = torch.Generator().manual_seed(seed)
    size = len(lengths), max(lengths), WIDTH
    tokens = torch.randn(size, generator=chance)
    return Text(tokens, torch.tensor(lengths), torch.randn(len(lengths), POOLED, generator=chance))


def padded(given: Text, length: int, value: float = 1e3) -> Text:
    filler = torch.full((len(given.tokens), length - given.tokens.shape[1], WIDTH), value)
    return given._replace(tokens=torch.cat([given.tokens, filler], dim=1))


def run(model: SiT, condition: Any, batch: int = 2, *, shape: Shape = SHAPE) -> Prediction:
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=chance)
    t = torch.rand(batch, generator=chance)
    token = torch.randn(batch, 1, 16, generator=chance)
    found: Prediction = model(x, (token,), t, (t,), condition)
    return found


def leaves(found: Prediction) -> list[Tensor]:
    return [found.latents, *found.tokens, *(a for a in found.aligned if a is not None)]


def assert_close(a: Prediction, b: Prediction) -> None:
    """Up to the order of sums, which differs with the number of keys: outputs are of size 1."""
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", ["joint", "gated"])
@pytest.mark.parametrize("length", [6, 17, 64])
def test_the_same_prompt_padded_to_any_length_gives_the_same(mode: Any, length: int) -> None:
    model, given = made(replace(TINY, text=mode)), text([3, 5])
    assert_close(run(model, padded(given, length)), run(model, given))


@pytest.mark.parametrize("mode", ["joint", "gated"])
def test_what_stands_in_the_padding_changes_no_bit(mode: Any) -> None:
    model, given = made(replace(TINY, text=mode)), text([3, 5])
    found = [run(model, padded(given, 9, value)) for value in (0.0, -7.0)]
    pairs = zip(leaves(found[0]), leaves(found[1]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_sample_does_not_see_the_texts_of_others() -> None:
    model, given = made(), text([3, 5])
    other = Text(*[torch.stack([a[0], b[1]]) for a, b in zip(given, text([4, 5], 1), strict=True)])
    a, b = run(model, given), run(model, other)
    torch.testing.assert_close(a.latents[0], b.latents[0], rtol=0, atol=2e-5)
    assert (a.latents[1] - b.latents[1]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["joint", "gated"])
def test_every_output_depends_on_the_tokens_and_the_pooled_text(mode: Any) -> None:
    model, given = made(replace(TINY, text=mode)), text([3, 5])
    tokens, pooled = given.tokens.requires_grad_(), given.pooled.requires_grad_()
    for leaf in leaves(run(model, given)):
        by = torch.autograd.grad(leaf.square().sum(), [tokens, pooled], retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in by)
        assert not by[0][0, 3:].any()  # the padding of the first text
    run(model, given).latents.square().sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())
    assert all(p.grad is not None for p in model.get_submodule("txt_embedder").parameters())


@pytest.mark.parametrize("mode", ["joint", "gated"])
@pytest.mark.parametrize(
    "captions",
    [
        ["a circle left of a square", "a square left of a circle"],
        ["a red circle and a blue square", "a blue circle and a red square"],
    ],
)
def test_the_order_of_words_reaches_the_image(mode: Any, captions: list[str]) -> None:
    """Attention alone knows no order: without positions both captions are one bag of words."""

    def apart(*, positions: bool) -> float:
        read = words.build(words.Config(positions=positions))
        model = made(replace(TINY, text=mode), read.embedder)
        found = run(model, read.parse(captions)).latents
        same = run(model, read.parse([captions[0]] * 2)).latents
        return (found - same)[1].abs().max().item()

    assert apart(positions=True) > 1e-3
    assert apart(positions=False) < 2e-5


def test_a_class_conditional_model_gains_a_gated_text_unchanged() -> None:
    """Bit for bit, whatever the text says; and the gates have a gradient to open by."""
    labels = Labels(torch.tensor([3, 7]))
    plain = made(replace(TINY, text="gated"), LABELS.embedder)
    model = made(replace(TINY, text="gated"), several, stir=False)
    left, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    in_blocks = {name.split(".")[3] for name in left if name.startswith("blocks")}
    assert in_blocks == {"txt_gate", "txt_kv"}
    assert all("txt" in name for name in left)
    found = run(model, Several((labels, text([3, 5]))))
    pairs = zip(leaves(run(plain, labels)), leaves(found), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    found.latents.square().sum().backward()
    gates = [block.attn.txt_gate for block in model.blocks]
    assert all(gate.shape == (4,) and gate.grad.abs().min() > 0 for gate in gates)


def test_without_a_text_nothing_of_it_exists() -> None:
    model = made(Config(depth=2, hidden_size=32, num_heads=4), LABELS.embedder)
    assert not model.reads_text
    assert not [name for name in model.state_dict() if "txt" in name or "rotation" in name]


def test_two_texts_follow_one_another_without_a_gap() -> None:
    def twice(width: int) -> nn.Module:
        return nn.ModuleDict({"a": text_embedder(width), "b": text_embedder(width)})

    model, seen = made(embedder=twice), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2:4]))
    first, second = text([3, 5]), text([4, 2], 1)
    found = run(model, Several((first, second)))
    tokens, lengths = seen[0]
    assert lengths.tolist() == [7, 7]
    own = [model.get_submodule(n)(c).tokens for n, c in (("a", first), ("b", second))]
    for row, (a, b) in enumerate([(3, 4), (5, 2)]):
        assert torch.equal(tokens[row, :7], torch.cat([own[0][row, :a], own[1][row, :b]]))
    assert_close(run(model, Several((padded(first, 8), padded(second, 11)))), found)


def test_rotated_products_depend_on_distances_alone() -> None:
    chance = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=chance)
    table = rotations(5, 7, 16, before=1)
    assert table.shape == (2, 36, 8)
    turned = [rotate(x.expand(1, 1, 36, 16), table)[0, 0] for x in (q, k)]
    assert torch.equal(turned[0][0], q[0, 0, 0])  # a token stays at angle 0
    scores = (turned[0] @ turned[1].T)[1:, 1:].reshape(5, 7, 5, 7)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[1, 2, 3, 5])
    torch.testing.assert_close(scores[4, 6, 1, 4], scores[3, 5, 0, 3])
    assert not torch.allclose(scores[0, 0, 2, 3], scores[0, 0, 3, 2])
    norms = turned[0].norm(dim=-1)
    torch.testing.assert_close(norms, q.norm().expand(36))


def test_rotations_stand_in_for_the_table_of_the_patches() -> None:
    model = made()
    assert not model.pos_embed[0, 1:].any()
    assert model.rotation is not None
    assert model.rotation.shape == (2, 1 + 4 * 6, 4)
    again = made(replace(TINY, rope=False))
    assert again.rotation is None
    assert again.pos_embed[0, 1:].abs().max() > 0
    with pytest.raises(Invalid, match="head width that is a multiple of 4"):
        Config(hidden_size=24, num_heads=4, rope=True)


def test_a_table_beside_rope_is_that_without_it_and_keeps_the_model_on_its_grid() -> None:
    turned, added, both = (
        made(replace(TINY, **each))
        for each in ({}, {"rope": False}, {"rope_table": True})  # type: ignore[arg-type]
    )
    assert torch.equal(both.pos_embed, added.pos_embed)
    assert both.rotation is not None
    assert turned.rotation is not None
    assert torch.equal(both.rotation, turned.rotation)
    assert (turned.any_grid, added.any_grid, both.any_grid) == (True, False, False)
    assert both.state_dict().keys() == turned.state_dict().keys()
    with pytest.raises(Invalid, match="a model without rope has anyway"):
        replace(TINY, rope=False, rope_table=True)


def test_blocks_and_refiners_are_units_of_low_precision() -> None:
    model = made()
    kinds = [type(part).__name__ for part in model.low_precision()]
    assert kinds == ["Block", "Block", "Projector", "RefinerBlock", "RefinerBlock"]


def test_a_block_compiles_whole_and_gives_the_same() -> None:
    model, given = made(), padded(text([3, 5]), 8)
    before = run(model, given)
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert_close(run(model, given), before)
    torch.compiler.reset()


@pytest.mark.parametrize("learnable", [0, 3])
def test_on_another_grid_a_model_with_rope_is_that_of_the_grid(learnable: int) -> None:
    """To the bit, also after it has been on others, and its own grid is as before."""
    config = replace(TINY, learnable_tokens=learnable)
    model, condition = made(config), text([3, 5])
    before = run(model, condition)
    for shape in ((4, 12, 8), (4, 4, 4), (4, 12, 8)):
        other = made(config, shape=shape)
        weights = {k: v for k, v in model.state_dict().items() if k not in model.places}
        other.load_state_dict(weights, strict=False)
        found, want = (run(each, condition, shape=shape) for each in (model, other))
        assert found.latents.shape == (2, *shape)
        pairs = zip(leaves(found), leaves(want), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(leaves(before), leaves(run(model, condition)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any("table" in name for name in model.state_dict())


def test_rotations_are_computed_and_never_resized() -> None:
    """A head of 12 gives tables of 6 columns, which no table of places has."""
    model = made(replace(TINY, hidden_size=48, rope_table=True))
    rotation = model.rotation
    assert rotation is not None
    assert rotation.shape[-1] == 6
    assert model.places_from("rotation", rotation) is None
