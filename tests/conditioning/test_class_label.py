"""Class labels: the published layout, and what a user may type."""

import pytest
import torch

from regscale.conditioning.class_label import NAMES, Config, build
from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.layers.initial import materialise
from regscale.types import Batch, Labels


@pytest.fixture(scope="module")
def imagenet():
    return build(Config())


@pytest.fixture(scope="module")
def digits():
    return build(Config(num_classes=10, names="digits"))


def test_imagenet_is_in_the_order_of_its_synsets():
    lines = (NAMES / "imagenet.txt").read_text().splitlines()
    synsets = [line.split(" ", 1)[0] for line in lines]
    assert len(set(synsets)) == 1000
    assert synsets == sorted(synsets)
    assert (lines[0], lines[207]) == ("n01440764 tench, Tinca tinca", "n02099601 golden retriever")
    assert lines[999] == "n15075141 toilet tissue, toilet paper, bathroom tissue"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("207", 207),
        ("golden retriever", 207),
        ("  Golden   Retriever", 207),
        ("n02099601", 207),
        ("tinca TINCA", 0),  # a synonym
        ("golden ret", 207),  # the beginning of one name alone
        ("tub", 876),  # also a synonym of bathtub: the class that shows this name has it
    ],
)
def test_a_class_is_a_number_or_any_of_its_names(imagenet, text, label):
    assert imagenet.parse([text]).labels.tolist() == [label]


def test_a_digit_is_its_numeral_or_its_word(digits):
    assert digits.parse(["7", "seven", "Zero"]).labels.tolist() == [7, 7, 0]


@pytest.mark.parametrize("kind", ["imagenet", "digits"])
def test_examples_and_descriptions_parse_back(kind, request):
    conditioner = request.getfixturevalue(kind)
    examples = conditioner.examples()
    labels = conditioner.parse(examples).labels.tolist()
    assert len(set(labels)) == len(examples) == 10
    for label in labels:
        number, _, name = conditioner.describe(label).partition(" ")
        assert int(number) == label
        assert name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("golden retreiver", ["is not the name of a class", "207 golden retriever"]),
        ("crane", ["is more than one class", "134 crane, 517 crane", "Give the number"]),
        ("qqqq", ["nothing like it", "0 to 999"]),
        ("1000", ["is not between 0 and 999", "999 toilet tissue"]),
        ("-1", ["is not between 0 and 999", "0 tench"]),
        ("", ["is not the name of a class"]),
    ],
)
def test_what_is_no_class_is_answered_with_the_nearest(imagenet, text, parts):
    with pytest.raises(RegscaleError) as caught:
        imagenet.parse([text])
    for part in parts:
        assert part in str(caught.value)


def test_null_is_the_last_row_of_the_published_table(digits):
    embedder = digits.embedder(48)
    assert dict(embedder.named_parameters()).keys() == {"embedding_table.weight"}
    null = digits.null(Labels(torch.tensor([3, 4])))
    assert null.labels.tolist() == [10, 10]
    row = embedder.embedding_table.weight[-1]
    torch.testing.assert_close(embedder(null).pooled, torch.stack([row, row]), rtol=0, atol=0)
    assert digits.describe(10) == "no class"


def test_the_table_begins_normal_with_deviation_0_02(imagenet):
    with torch.device("meta"):
        embedder = imagenet.embedder(256)
    materialise(embedder, seed=0, device=torch.device("cpu"))
    weight = embedder.embedding_table.weight
    assert weight.shape == (1001, 256)
    # 256,256 numbers: standard errors of 4e-5 and 2.8e-5
    assert abs(weight.mean()) < 2e-4
    assert abs(weight.std() - 0.02) < 2e-4


def test_a_batch_without_labels_is_refused(digits):
    with pytest.raises(RegscaleError, match="has no 'labels', which class_label needs"):
        digits.encode(Batch(keys=("a",), positions=torch.zeros(1, dtype=torch.int64)))


def test_names_come_from_a_file_of_the_user(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("sparrow, Passer\nwren\n")
    conditioner = build(Config(num_classes=2, names=str(file)))
    assert conditioner.parse(["passer", "wr"]).labels.tolist() == [0, 1]
    with pytest.raises(Invalid, match="Set num_classes=2"):
        build(Config(num_classes=3, names=str(file)))
    with pytest.raises(Invalid, match=r"is digits, imagenet or a readable text file"):
        build(Config(names=str(tmp_path / "missing.txt")))


def test_classes_may_have_numbers_only():
    conditioner = build(Config(num_classes=3, names=None))
    assert conditioner.parse(conditioner.examples()).labels.tolist() == [0, 1, 2]
    assert conditioner.describe(1) == "1"
    with pytest.raises(RegscaleError, match="a number from 0 to 2"):
        conditioner.parse(["wren"])


@pytest.mark.parametrize("values", [{"num_classes": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(Invalid, match=next(iter(values))):
        Config(**values)
