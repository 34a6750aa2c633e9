"""Words of a small vocabulary, and several conditions at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regscale.conditioning import class_label, several, words
from regscale.conditioning.words import Words
from regscale.config import Invalid, load
from regscale.data import _scenes
from regscale.errors import RegscaleError
from regscale.layers.initial import materialise
from regscale.recipe import RunConfig
from regscale.types import Batch, Labels, Several, choose, map_tensors


@pytest.fixture
def shapes() -> Any:
    return words.build(words.Config())


def batch(captions: list[str]) -> Batch:
    return Batch(
        keys=tuple(f"k{i}" for i in range(len(captions))),
        positions=torch.zeros(len(captions), dtype=torch.int64),
        captions=tuple(captions),
        labels=torch.arange(len(captions)),
    )


def test_the_vocabulary_holds_every_caption_of_shapecaps(shapes: Any) -> None:
    texts = {
        str(caption)
        for index in range(600)
        for caption in _scenes.scene(
            index, seed=0, split="train", kinds=_scenes.ALL_KINDS, held_out=False
        ).captions
    }
    assert len(texts) > 200
    found = shapes.parse(sorted(texts))
    assert int(found.lengths.max()) <= shapes.config.max_length
    used = set(found.words.unique().tolist())
    assert used == set(range(len(shapes.numbers) + 1))  # and no word that none says


def test_words_are_read_without_regard_to_case_and_marks(shapes: Any) -> None:
    a, b = shapes.parse(["A red circle", " a RED, circle. "]).words
    assert torch.equal(a, b)
    assert shapes.parse(["two squares"]).lengths.tolist() == [3]  # the end included


def test_null_is_the_empty_text(shapes: Any) -> None:
    like = shapes.parse(["a circle", "two red squares"])
    null, empty = shapes.null(like), shapes.parse(["", ""])
    assert all(torch.equal(a, b) for a, b in zip(null, empty, strict=True))
    assert shapes.parse(shapes.examples()).words.shape == (4, 16)


def test_a_word_that_is_not_known_is_named_with_the_nearest(shapes: Any) -> None:
    with pytest.raises(RegscaleError, match=r"sample k1: .*; found sqare. Did you mean 'square'"):
        shapes.encode(batch(["a circle", "a sqare"]))
    with pytest.raises(RegscaleError, match=r"prompt 'a purple circle': .*; found purple"):
        shapes.parse(["a purple circle"])
    with pytest.raises(RegscaleError, match="has less than 16 words; found 20"):
        shapes.parse(["a " * 20])


def test_the_vocabulary_may_be_the_user_s(tmp_path: Path) -> None:
    file = tmp_path / "birds.txt"
    file.write_text("sparrow\nWren\n")
    config = words.Config(
        vocabulary=str(file), words=("on", "branch"), examples=("wren on branch",)
    )
    assert words.build(config).parse(["Sparrow on branch"]).words[0, :3].tolist() == [1, 3, 4]
    with pytest.raises(
        Invalid, match=r"examples: are texts of the vocabulary; found .* with a, cir"
    ):
        words.build(words.Config(vocabulary=str(file)))
    with pytest.raises(Invalid, match="is shapecaps or a readable text file"):
        words.build(words.Config(vocabulary="birds"))


def embedder_of(conditioner: Any) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = conditioner.embedder(32)
    materialise(made, seed=0, device=torch.device("cpu"))
    return made


def test_words_are_embedded_and_trained(shapes: Any) -> None:
    embedder = embedder_of(shapes)
    for parameter in embedder.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    given: Words = shapes.parse(["a red circle", "two squares"])
    made = embedder(given)
    (made.pooled.sum() + made.tokens[0, :4].square().sum() + made.tokens[1, 0].sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in embedder.parameters())
    again = embedder(given._replace(words=given.words[:, :5]))
    torch.testing.assert_close(again.pooled, made.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.tokens[0, :4], made.tokens[0, :4], rtol=0, atol=1e-5)


# Several


@pytest.fixture
def both() -> Any:
    label = class_label.Config(num_classes=10, names="digits")
    return several.build(several.Config(parts={"label": label, "text": words.Config()}))


def test_parts_are_encoded_dropped_and_joined_together(both: Any) -> None:
    given = both.encode(batch(["a circle", "two squares"]))
    assert isinstance(given, Several)
    null = both.null(given)
    kept = choose(torch.tensor([True, False]), given, null)
    label, text = kept.parts
    assert label.labels.tolist() == [0, 10]
    assert text.lengths.tolist() == [3, 1]
    shapes: list[torch.Size] = []

    def note(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x

    assert map_tensors(note, kept) == kept
    assert [tuple(s) for s in shapes] == [(2,), (2, 16), (2,)]
    assert both.num_classes == 10


def test_the_first_part_of_a_slot_keeps_its_parameter_names(both: Any) -> None:
    names = [n for n, _ in both.embedder(32).named_parameters()]
    assert "y_embedder.embedding_table.weight" in names
    assert "txt_embedder.text.norm.weight" in names
    two = several.build(several.Config(parts={"a": words.Config(), "b": words.Config()}))
    assert list(two.embedder(32)) == ["txt_embedder", "txt_embedder_b"]


def test_a_prompt_is_for_the_text_or_has_a_piece_for_each_part(both: Any) -> None:
    label, text = both.parse(["7 | a circle", "seven|two squares"]).parts
    assert label.labels.tolist() == [7, 7]
    assert text.lengths.tolist() == [3, 3]
    label, text = both.parse(["a circle", "3 | a circle"]).parts
    assert label.labels.tolist() == [10, 3]
    assert torch.equal(text.words[0], text.words[1])
    assert both.parse(both.examples()).parts[0].labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(RegscaleError, match=r"one for each of label, text; found 3"):
        both.parse(["a | b | c"])


def test_two_encoders_of_a_text_read_it_whole() -> None:
    """A caption of the web may hold any mark; prompts are read as captions are."""
    parts = {name: words.Config(words=("flickr",)) for name in ("a", "b")}
    two = several.build(several.Config(parts=parts))
    captions = ["a red circle | flickr", "a | circle | flickr"]
    parsed, encoded = two.parse(captions), two.encode(batch(captions))
    for ours, its in zip(parsed.parts, encoded.parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, its, strict=True))
    assert two.parse(two.examples()).parts[0].words.shape == (4, 16)
    t5 = pytest.importorskip("regscale.conditioning.t5")
    with_encoder = several.build(several.Config(parts={"a": t5.Config(), "b": words.Config()}))
    assert with_encoder.examples() == list(words.Config().examples)  # which words can read


def test_several_are_configured_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\nconditioning:\n  kind: several\n  dropout: 0.2\n  parts:\n"
        "    label: {kind: class_label, num_classes: 10, names: digits}\n    text: {kind: words}\n"
    )
    config = load(RunConfig, path, ["conditioning.parts.text.max_length=9"])
    made = several.build(config.conditioning)
    assert isinstance(made.blank(1).parts[0], Labels)
    assert made.blank(1).parts[1].words.shape == (1, 9)
    with pytest.raises(RegscaleError, match=r"parts\.text\.dropout: is left out: parts are dropp"):
        load(RunConfig, path, ["conditioning.parts.text.dropout=0.3"])
    with pytest.raises(Invalid, match="one class label at most"):
        several.build(several.Config(parts=dict.fromkeys("ab", class_label.Config())))
    with pytest.raises(Invalid, match="names conditions; found none"):
        several.build(several.Config())
