"""The configuration loader, and every message that a user can read from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from regscale.config import Invalid, kind_of, load, load_values, slot, slots, to_values, to_yaml
from regscale.config.slots import nearest
from regscale.errors import RegscaleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Align:
    weight: float = 0.5
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    betas: tuple[float, float] = (0.9, 0.999)
    mode: Literal["fast", "slow"] = "fast"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 0:
            raise Invalid("size", "is not negative", found=self.size, fix="Give 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    seed: int = 0
    rate: float = 1e-4
    flag: bool = False
    decays: tuple[float, ...] = (0.9,)
    inner: Inner = field(default_factory=Inner)
    align: dict[str, Align] = field(default_factory=dict)
    solver: Any = slot("regscale.sampling.solvers", "euler")
    solvers: dict[str, Any] = slots("regscale.sampling.solvers")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nalign: {a: {depth: 4}}\n")
    return path


def test_layers_are_dataclass_then_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("seed: 1\nrate: 1e-3\nflag: true\n")
    path = tmp_path / "run.yaml"
    path.write_text("defaults: [part.yaml]\nseed: 2\nflag: false\n")
    config = load(Run, path, ["flag=true", "decays=[0.5, 0.6, 0.7]"])
    assert (config.seed, config.rate, config.flag) == (2, 1e-3, True)
    assert config.decays == (0.5, 0.6, 0.7)
    assert config.inner.betas == (0.9, 0.999)


def test_mappings_merge_and_null_removes_a_member(file: Path) -> None:
    config = load(Run, file, ["align.b.depth=2", "align.a.weight=0"])
    assert config.align == {"a": Align(depth=4, weight=0.0), "b": Align(depth=2)}
    assert load(Run, file, ["align.a=null"]).align == {}
    assert load(Run, file, ["align=null"]).align == {}


def test_another_kind_starts_its_section_afresh(file: Path) -> None:
    path = file
    path.write_text("solver: {kind: euler_maruyama, num_steps: 7, last_time: 0.1}\n")
    same = load(Run, path, ["solver.num_steps=9"]).solver
    assert (kind_of(same), same.num_steps, same.last_time) == ("euler_maruyama", 9, 0.1)
    other = load(Run, path, ["solver.kind=heun"]).solver
    assert (kind_of(other), other.num_steps) == ("heun", 250)


def test_a_resolved_config_loads_to_an_equal_one(file: Path) -> None:
    config = load(Run, file, ["solvers.x.kind=heun", "solvers.x.num_steps=3", "inner.size=5"])
    assert load_values(Run, to_values(config), "manifest") == config
    file.write_text(to_yaml(to_values(config)))
    assert load(Run, file) == config


def test_interpolations_are_resolved_over_all_layers(file: Path) -> None:
    assert load(Run, file, ["inner.size=${seed}"]).inner.size == 3


MESSAGES = [
    ("sed=1", "command line: sed=1: sed: is not a key; found 'sed'. Did you mean 'seed'?"),
    ("align.a.dept=1", "align.a.dept: is not a key; found 'dept'. Did you mean 'depth'?"),
    ("seed=many", "seed: has the wrong type; found 'many'. Give a whole number."),
    ("rate=[1]", "rate: has the wrong type; found [1]. Give a number."),
    ("flag=perhaps", "flag: has the wrong type; found 'perhaps'. Give true or false."),
    ("inner.mode=medium", "inner.mode: has the wrong type; found 'medium'. Give one of 'fast'"),
    ("inner.betas=[1]", "inner.betas: has the wrong type; found [1]. Give a value of type tuple"),
    ("inner=3", "inner: is a section; found 3. Write its keys below it."),
    ("align.a=3", "align.a: is a section; found 3. Write its keys below it."),
    ("seed", "is not of the form key.sub=value; found 'seed'. Add '=' and a value."),
    ("=3", "is not of the form key.sub=value; found '=3'."),
    ("align.b.weight=1", "run.yaml: align.b.depth: is required; found nothing. Give a value."),
    ("inner.size=-1", "command line: inner.size=-1: inner.size: is not negative; found -1."),
    ("solver.kind=eular", "solver.kind: is not a known kind; found 'eular'. Did you mean 'euler'?"),
    ("solver.steps=3", "solver.steps: is not a key; found 'steps'. Did you mean 'num_steps'?"),
    ("solvers.x.num_steps=3", "solvers.x: has no 'kind'; found ['num_steps']."),
    ("inner.mode=${seed}", "{seed}: inner.mode: has the wrong type; found 3. Give one of 'fast'"),
    ("inner.size=${sed}", "an interpolation cannot be resolved; found Interpolation key 'sed'"),
]


@pytest.mark.parametrize(("override", "message"), MESSAGES)
def test_a_wrong_override_is_told_in_four_parts(file: Path, override: str, message: str) -> None:
    with pytest.raises(RegscaleError) as caught:
        load(Run, file, [override])
    assert message in str(caught.value)


FILES = [
    ("seed: [", "cannot be read as YAML"),
    ("- 1\n- 2\n", "is not a mapping; found list"),
    ("seed: 1\nseed: 2\n", "cannot be read as YAML; found"),
    ("sed: 1\n", "run.yaml: sed: is not a key; found 'sed'. Did you mean 'seed'?"),
    ("defaults: [other.yaml]\n", "other.yaml: there is no such file"),
    ("defaults: [run.yaml]\n", "a file cannot be its own default"),
    ("defaults: x\n", "defaults: is a list of files; found 'x'"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_wrong_file_is_told_in_four_parts(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(RegscaleError) as caught:
        load(Run, file)
    assert message in str(caught.value)


def test_a_missing_file_names_the_configs_beside_it(file: Path) -> None:
    with pytest.raises(RegscaleError, match=r"there is no such file; found .*run\.yaml"):
        load(Run, file.parent / "rnu.yaml")


def test_an_error_names_the_layer_that_brought_it(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("seed: x\n")
    path = tmp_path / "run.yaml"
    path.write_text("defaults: [part.yaml]\n")
    with pytest.raises(RegscaleError, match=r"part\.yaml: seed"):
        load(Run, path)


def test_of_very_many_names_some_are_shown() -> None:
    assert nearest("zzz", map(str, range(9))).endswith("6, 7, 8.")
    assert nearest("zzz", map(str, range(100))).endswith(", 35 and 70 others.")
