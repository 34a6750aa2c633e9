"""Files of prompts: what they may hold, and what is told of one that cannot be read."""

from pathlib import Path

import pytest

from regscale.errors import RegscaleError
from regscale.sampling.many import Wanted
from regscale.sampling.prompts import read_prompts


def test_a_json_object_a_line_has_a_prompt_and_perhaps_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red circle"}\n\n{"prompt": "zwei Hünde", "seed": 7, "id": 3}\n')
    assert read_prompts(path, seed=4) == [Wanted("a red circle", 4), Wanted("zwei Hünde", 7)]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('\n a red circle \n\n{"not": "read"}\n')
    assert read_prompts(path, seed=4) == [Wanted("a red circle", 4), Wanted('{"not": "read"}', 5)]


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1d"])
def test_line_feeds_alone_end_a_line(tmp_path: Path, mark: str) -> None:
    """Captions of the web hold other separators; and files may begin with a byte order mark."""
    text, lines = f"sunset{mark}beach", tmp_path / "prompts.txt"
    lines.write_text(f"\ufeff{text}\r\na dog\r\n", encoding="utf-8", newline="")
    assert read_prompts(lines) == [Wanted(text, 0), Wanted("a dog", 1)]
    if mark > "\x1f":  # JSON writes the others as escapes
        objects = tmp_path / "prompts.jsonl"
        objects.write_text("\ufeff" + f'{{"prompt": "{text}"}}\n', encoding="utf-8")
        assert read_prompts(objects) == [Wanted(text, 0)]


REFUSALS = [
    ("", "prompts.jsonl: holds no prompt; found 0 bytes, no line with text. Give a JSON object"),
    ("\n  \n", "holds no prompt; found 4 bytes"),
    ('{"prompt": "x"}\n\na red circle\n', "line 3: is not JSON; found 'a red circle'"),
    ('{"text": "x", "id": 1}', "line 1: has no text under 'prompt'; found text, id. Give"),
    ('{"prompt": 3}', "line 1: has no text under 'prompt'; found prompt"),
    ('["x"]', "line 1: has no text under 'prompt'; found list"),
    ('{"prompt": "x", "seed": "7"}', "line 1: has a seed that is no whole number; found '7'"),
    ('{"prompt": "x", "seed": true}', "line 1: has a seed that is no whole number; found True"),
]


@pytest.mark.parametrize(("content", "message"), REFUSALS)
def test_what_is_no_prompt_is_named_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(RegscaleError) as caught:
        read_prompts(path)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="cannot be read as prompts; found No such file"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RegscaleError, match="cannot be read as prompts; found 'utf-8'"):
        read_prompts(tmp_path / "picture.txt")
