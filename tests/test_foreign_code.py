"""No line of code that a file or a model's folder brings is run."""

import ast
import json
from pathlib import Path

import pytest

from regscale.conditioning import _transformers_text
from regscale.errors import RegscaleError
from regscale.representations import dinov2

MODULES = sorted((Path(__file__).parents[1] / "regscale").rglob("*.py"))
RUNNING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    """Every call as it is written, and its keywords."""
    return [
        (ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_calls_nothing_that_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or "", *(each.name for each in node.names)}
            assert not {name.partition(".")[0] for name in names} & RUNNING
    for name, keywords in calls(tree):
        assert name not in ("eval", "exec", "torch.hub.load")
        assert keywords.get("trust_remote_code", "False") == "False"
        assert keywords.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name.startswith("Auto") and name.endswith(".from_pretrained"):
            assert keywords.get("trust_remote_code") == "False"  # else a user may be asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose own classes leave a file behind as soon as they are imported."""
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.T", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    code += "from transformers import PretrainedConfig\n"
    code += "class Config(PretrainedConfig):\n    model_type = 'own'\n"
    (tmp_path / "own.py").write_text(code)
    return tmp_path


def test_the_code_of_a_model_is_neither_run_nor_offered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a user is asked to run it"))
    with pytest.raises(RegscaleError, match="dinov2"):
        dinov2._model_config(str(folder))
    with pytest.raises(RegscaleError, match="text"):
        _transformers_text.model_config(str(folder), kind="text")
    with pytest.raises(RegscaleError, match="text"):
        _transformers_text.tokenizer(str(folder), kind="text")
    assert not (folder / "ran").exists()
