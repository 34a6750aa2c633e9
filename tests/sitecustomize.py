"""Lets a CUDA build of torchvision be imported beside a CPU build of torch, in tests alone.

Its operators do not load there, and its Python part only asks for the schemas of two of them.
Python imports this file by itself in subprocesses that have tests/ on PYTHONPATH.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept = []  # a library's definitions live as long as it does


class _Schemas(MetaPathFinder):
    """Finds nothing; defines the schemas when torchvision is first looked for."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname == "torchvision" and not _kept:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            _kept.append(library)
            for schema in SCHEMAS:
                library.define(schema)
        return None


def _builds_differ() -> bool:
    try:
        return "+cpu" in version("torch") and "+cpu" not in version("torchvision")
    except PackageNotFoundError:
        return False


if _builds_differ() and not any(type(finder).__name__ == "_Schemas" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Schemas())
