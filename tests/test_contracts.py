"""The contract of every kind in every plug-in folder, and the rules of the house."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import regscale
from regscale.config import kind_of, kinds, load, load_values, plugin, to_values
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "regscale.models",
    "regscale.conditioning",
    "regscale.representations",
    "regscale.autoencoders",
    "regscale.data",
    "regscale.parallel",
    "regscale.sampling.solvers",
    "regscale.evaluation.extractors",
]
KINDS = [(package, kind) for package in PACKAGES for kind in kinds(package)]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "parts")
MODULES = sorted((ROOT / "regscale").rglob("*.py"))


@pytest.mark.parametrize(("package", "kind"), KINDS)
def test_a_kind_defines_a_frozen_config_and_build(package: str, kind: str) -> None:
    try:
        module = plugin(package, kind)
    except RegscaleError as error:  # a package that this kind alone needs
        pytest.skip(str(error))
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(module.Config))
    assert "__slots__" in module.Config.__dict__
    assert callable(module.build)
    assert module.__doc__
    required = [
        f
        for f in dataclasses.fields(module.Config)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if not required:
        assert kind_of(module.Config()) == kind


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_config_loads_says_its_command_and_what_to_expect(path: Path) -> None:
    config = load(RunConfig, path)
    assert load_values(RunConfig, to_values(config), "again") == config
    text = path.read_text()
    place = path.relative_to(ROOT)
    assert re.search(rf"python -m regscale\.train {place}|make demo", text)
    assert re.search(r"# Expect ", text)
    assert re.search(r"# Measured ", text)


def test_there_are_configs_and_kinds_to_check() -> None:
    assert {p.stem for p in CONFIGS} >= {"digits", "imagenet_sit_b", "imagenet_sit_xl"}
    assert len(KINDS) >= 13


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_short_documented_and_quiet(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(tree), "a module's docstring is its one idea"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit"}
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"


def test_the_version_is_told_once() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{regscale.__version__}"' in project
