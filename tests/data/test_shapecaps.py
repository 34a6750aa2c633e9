"""ShapeCaps: the specified scenes and captions, the same for ever, with nothing held out shown."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from regscale.config import Invalid
from regscale.data import NoiseShapes, batches
from regscale.data._scenes import (
    ALL_KINDS,
    COMPOUND,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    INVERSE,
    KINDS,
    SOURCES,
    Scene,
    captions,
)
from regscale.data._shapes import BITS, COLOURS, GREY, SHAPES, mask, offsets, relations
from regscale.data.shapecaps import Config, ShapeCaps, build, digest_of, pictures, prompts, truth
from regscale.errors import RegscaleError

HELD_OUT_KINDS = ("counting", "colors", "position", "color_attr", COMPOUND)


def scenes(number: int, *kinds: str, **options) -> list[Scene]:
    source = build(Config(kinds=kinds or KINDS, num_samples=number, **options))
    return [source.scene(index) for index in range(number)]


def shown(one: Scene) -> tuple[set, set, set]:
    """What is in a picture: (colour, shape), (shape, count), (shape, shape, relation)."""
    pairs = {(figure.colour, figure.shape) for figure in one.figures}
    counts = set(Counter(figure.shape for figure in one.figures).items())
    lies = {
        (a.shape, b.shape, relation)
        for first, second in combinations(one.figures, 2)
        for a, b in ((first, second), (second, first))
        if a.shape != b.shape
        for relation, bit in BITS.items()
        if relations(a.box, b.box) & bit
    }
    return pairs, counts, lies


# The specification


def test_the_first_scenes_never_change() -> None:
    # Published scores rely on these pixels and captions: a change makes another data set.
    made = digest_of(scenes(600, *ALL_KINDS)).hex()
    assert made == "138f4558b864fdaf6dececa259e2ce41"
    held = digest_of(scenes(600, *HELD_OUT_KINDS, split="held_out")).hex()
    assert held == "1f454fb81c846c2c0a10e5ad5dd752b6"


def test_what_is_held_out_has_the_specified_size() -> None:
    assert len(HELD_OUT_PAIRS) == 8
    assert ("white", "triangle") in HELD_OUT_PAIRS  # the eighth colour, shape 7 mod 5
    assert len(HELD_OUT_RELATIONS) == 24
    assert {(b, a, INVERSE[r]) for a, b, r in HELD_OUT_RELATIONS} == HELD_OUT_RELATIONS
    sizes = {k: (len(captions(k, held_out=False)), len(captions(k, held_out=True))) for k in KINDS}
    assert sizes == {
        "single_object": (5, 0), "two_object": (20, 0), "counting": (12, 3), "colors": (32, 8),
        "position": (56, 24), "color_attr": (722, 398),
    }  # fmt: skip


@pytest.mark.parametrize("number", [pytest.param(50_000, marks=pytest.mark.slow), 3_000])
def test_nothing_held_out_is_in_a_training_scene(number: int) -> None:
    for one in (*scenes(number), *scenes(number // 10, *ALL_KINDS)):
        pairs, counts, lies = shown(one)
        assert not pairs & HELD_OUT_PAIRS
        assert not counts & HELD_OUT_COUNTS
        assert not lies & HELD_OUT_RELATIONS


def test_all_that_is_not_held_out_is_shown() -> None:
    every = [shown(one) for one in scenes(3_000)]
    pairs, counts, lies = (set().union(*sets) for sets in zip(*every, strict=True))
    assert len(pairs) == 40 - 8
    assert len({count for count in counts if count[1] > 1}) == 15 - 3
    assert len(lies) == 80 - 24


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_a_held_out_scene_shows_what_its_caption_holds_out(kind: str) -> None:
    for one in scenes(300, kind, split="held_out"):
        assert one.prompt.held_out
        pairs, counts, lies = shown(one)
        missing = pairs & HELD_OUT_PAIRS, counts & HELD_OUT_COUNTS, lies & HELD_OUT_RELATIONS
        assert any(missing)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_figures_keep_their_distances_and_sizes(kind: str) -> None:
    for one in scenes(300, kind):
        largest = 9 if len(one.figures) >= 3 else 11
        for figure in one.figures:
            assert 8 <= figure.size <= largest
            assert min(figure.top, figure.left) >= 1
            assert max(figure.top, figure.left) + figure.size <= 31
        for a, b in combinations(one.figures, 2):
            down = max(b.top - a.top - a.size, a.top - b.top - b.size)
            right = max(b.left - a.left - a.size, a.left - b.left - b.size)
            assert max(down, right) >= 2


def test_shapes_and_colours_of_a_caption_differ() -> None:
    for one in scenes(1_000, *ALL_KINDS):
        for name in ("shape", "colour"):
            named = [getattr(group, name) for group in one.groups]
            assert len(set(named)) == len(named)


def test_exactly_one_relation_holds_in_a_position_scene() -> None:
    for one in scenes(1_000, "position"):
        first, second = one.figures
        assert relations(first.box, second.box) == BITS[one.prompt.relation]


def test_relations_are_those_of_genevals_rule() -> None:
    assert relations((0, 0, 10, 10), (0, 20, 10, 30)) == BITS["left"]
    assert relations((20, 0, 30, 10), (0, 0, 10, 10)) == BITS["below"]
    assert relations((0, 0, 10, 10), (20, 20, 30, 30)) == BITS["left"] | BITS["above"]
    assert relations((0, 0, 10, 10), (1, 1, 11, 11)) == 0  # less than a tenth of the summed sides
    assert relations((0, 0, 10, 10), (0, 0, 10, 10)) == 0
    # (20 - 2, 11.9 - 2) / |(20, 11.9)| = (0.77, 0.43): the second is below the bound of 0.5
    assert relations((0, 0, 100, 100), (119, 200, 219, 300)) == BITS["left"]


def test_the_table_of_offsets_is_the_rule() -> None:
    codes = offsets(("triangle", 8), ("square", 11))
    for one in scenes(400, "two_object"):
        first, second = one.figures
        codes = offsets((first.shape, first.size), (second.shape, second.size))
        code = codes[second.top - first.top + 31, second.left - first.left + 31]
        assert code == relations(first.box, second.box)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [8, 9, 10, 11])
def test_masks_are_the_formulas_of_the_specification(shape: str, size: int) -> None:
    y, x = np.mgrid[:size, :size]
    c, near = (size - 1) / 2, 1e-9  # pixels on an edge belong to the shape
    dx, dy = (x - c) / (size / 2), (y - c) / (size / 2)
    bar, start = round(size / 3), (size - round(size / 3)) // 2
    expected = {
        "circle": dx**2 + dy**2 <= 1 + near,
        "square": np.ones((size, size), dtype=bool),
        "triangle": np.abs(x - c) <= (y + 0.5) / 2 + near,
        "cross": ((x >= start) & (x < start + bar)) | ((y >= start) & (y < start + bar)),
        "diamond": np.abs(dx) + np.abs(dy) <= 1 + 1 / size + near,
    }
    assert (mask(shape, size, size) == expected[shape]).all()


def test_a_picture_is_figures_on_grey() -> None:
    one = scenes(2, "two_object")[1]
    (picture,) = pictures([one])
    background = (picture == GREY).all(0)
    assert background.sum() == 32 * 32 - sum(
        mask(f.shape, f.size, f.size).sum() for f in one.figures
    )
    for f in one.figures:
        inside = picture[:, f.top : f.top + f.size, f.left : f.left + f.size]
        assert (COLOURS[f.colour] == inside[:, mask(f.shape, f.size, f.size)].T).all()


def test_64_pixels_are_32_doubled() -> None:
    small, large = (build(Config(size=size)).read(range(12), range(12)).images for size in (32, 64))
    assert large.shape == (12, 3, 64, 64)
    assert torch.equal(large[:, :, ::2, ::2], small)
    assert torch.equal(large[:, :, 1::2, 1::2], small)


def test_captions_are_spelled_as_specified() -> None:
    texts = {kind: {p.text for p in captions(kind, held_out=False)} for kind in ALL_KINDS}
    assert "a cross" in texts["single_object"]
    assert "a circle and a square" in texts["two_object"]
    assert "three crosses" in texts["counting"]
    assert "a red circle" in texts["colors"]
    assert "a circle right of a square" in texts["position"]
    assert "a red circle and a white cross" in texts["color_attr"]
    assert "two red diamonds above a green cross" in texts[COMPOUND]


def test_a_picture_carries_three_true_captions() -> None:
    assert SOURCES == ("short", "full", "relation")
    for one in scenes(2_000, *ALL_KINDS):
        short, full, relation = one.captions
        assert short == one.prompt.text
        assert all(group.colour in full for group in one.groups)
        if len(one.figures) == 2 and len(one.groups) == 2:
            code = relations(one.figures[0].box, one.figures[1].box)
            named = sum(bit for name, bit in BITS.items() if f" {name} " in relation)
            assert named & code == named  # compound: another relation may hold as well
            assert named or code not in BITS.values()


def test_kinds_and_captions_are_equally_frequent() -> None:
    drawn = [one.prompt for one in scenes(6_000)]
    found, kinds = Counter(drawn), Counter(prompt.kind for prompt in drawn)
    assert set(kinds.values()) == {1_000}
    for prompt, number in found.items():
        expected = 1_000 / len(captions(prompt.kind, held_out=False))
        assert abs(number - expected) < 6 * expected**0.5 + 6  # six deviations


# The source


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    source, again = build(Config(num_samples=900)), build(Config(num_samples=60))
    whole = source.read(range(60), range(60))
    some = again.read([41, 3], [41, 3])
    assert torch.equal(some.images, whole.images[[41, 3]])
    assert some.captions == (whole.captions[41], whole.captions[3])
    other = build(Config(seed=1)).read(range(60), range(60))
    assert not torch.equal(other.images, whole.images)
    held_out = build(Config(split="validation")).read(range(60), range(60))
    assert not torch.equal(held_out.images, whole.images)


def test_a_batch_has_keys_images_and_captions_but_no_labels() -> None:
    batch = build(Config(split="held_out", kinds=("colors",))).read([7], [100])
    assert batch.keys == ("shapecaps-held-out-00000007",)
    assert batch.positions.tolist() == [100]
    assert batch.images.shape == (1, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.labels is None


def test_each_caption_is_taken_equally_often_or_by_its_weight() -> None:
    places = range(900)
    source = build(Config(kinds=("position",)))
    by_name = source.scene(5).captions
    drawn = Counter(source.read([5] * 900, places).captions)
    assert set(drawn) == set(by_name)
    assert all(abs(number - 300) < 90 for number in drawn.values())  # six deviations
    short = build(Config(kinds=("position",), caption_weights={"short": 1}))
    assert set(short.read([5] * 900, places).captions) == {by_name[0]}


def test_shuffled_captions_are_those_of_another_scene_of_the_kind() -> None:
    kinds = ("counting", "colors")
    own, shuffled = (
        build(Config(num_samples=300, kinds=kinds, captions=each, caption_weights={"short": 1}))
        for each in ("own", "shuffled")
    )
    a, b = (source.read(range(300), range(300)) for source in (own, shuffled))
    assert torch.equal(a.images, b.images)
    assert b.captions[:-2] == a.captions[2:], "the same captions, each at another picture"
    alike = sum(x == y for x, y in zip(a.captions, b.captions, strict=True))
    expected = 150 / 12 + 150 / 32  # by chance, of the captions of each kind
    assert abs(alike - expected) < 6 * expected**0.5
    assert shuffled.read([299], [0]).captions, "also of the last one"


def test_the_loader_reads_it_from_any_place() -> None:
    def read(start: int, workers: int):
        source = build(Config(num_samples=40))
        shapes = NoiseShapes(latents=(3, 4, 4), tokens=())
        loader = batches(source, shapes, seed=0, start=start, batch_size=8, num_workers=workers)
        found = [next(loader) for _ in range(3)]
        loader.close()
        return found

    first, again = read(0, 0), read(8, 1)
    for a, b in zip(first[1:], again[:2], strict=True):
        assert a.keys == b.keys
        assert a.captions == b.captions
        assert torch.equal(a.images, b.images)


def test_the_fingerprint_tells_the_settings_apart() -> None:
    settings = [
        {}, {"seed": 1}, {"size": 64}, {"split": "validation"}, {"kinds": ("colors",)},
        {"num_samples": 7}, {"captions": "shuffled"},
    ]  # fmt: skip
    found = [build(Config(**each)).fingerprint for each in settings]
    assert len(set(found)) == len(found)
    assert found[0] == build(Config()).fingerprint


def test_a_flip_is_refused() -> None:
    with pytest.raises(Invalid, match="flip: would turn left to right, which captions name; found"):
        Config(flip=True)


def test_what_cannot_be_made_is_refused() -> None:
    for wrong, text in [
        ({"size": 48}, "size: is 32 or doubled; found 48"),
        ({"num_samples": 0}, "num_samples: is positive"),
        ({"kinds": ("colours",)}, "kinds: is a list of different names of single_object"),
        ({"kinds": ()}, "kinds: is a list"),
        ({"split": "held_out"}, "kinds: have held-out captions, for split: held_out; found single"),
        ({"caption_weights": {"long": 1.0}}, "caption_weights: is of short, full, relation"),
        ({"caption_weights": {"full": 0.0}}, "caption_weights: has a weight above 0"),
    ]:
        with pytest.raises(Invalid, match=text):
            Config(**wrong)


def test_an_index_outside_the_split_is_refused() -> None:
    with pytest.raises(RegscaleError, match="samples 0 to 9; found sample 10"):
        ShapeCaps(Config(num_samples=10)).read([10], [0])


# Prompts


def test_prompts_come_evenly_and_repeat_by_their_seed() -> None:
    found = prompts("colors", number=64, seed=3)
    assert set(Counter(found).values()) == {2}
    assert found == prompts("colors", number=64, seed=3)
    assert found != prompts("colors", number=64, seed=4)
    assert found[:10] == prompts("colors", number=10, seed=3)
    assert all(each.held_out for each in prompts("colors", "held_out", number=20))


def test_prompts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(RegscaleError, match="single_object: has no held-out captions"):
        prompts("single_object", "held_out", number=1)
    with pytest.raises(RegscaleError, match="no such kind"):
        prompts("shapes", number=1)


def test_truth_draws_each_prompt() -> None:
    wanted = prompts(COMPOUND, "held_out", number=20)
    made = truth(wanted, size=64)
    assert made.shape == (20, 3, 64, 64)
    assert torch.equal(made, truth(wanted, size=64))
