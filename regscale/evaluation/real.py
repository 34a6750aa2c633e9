"""Real data that pictures are compared with, and what one extractor sees of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.evaluation._references import Reference, read_reference
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.extractors import Extractor
from regscale.evaluation.metrics import Collected, Gaussian, gaussian_of
from regscale.evaluation.pictures import Pictures, of_npz, of_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Statistics, real pictures, or both."""

    identity: str
    statistics: Reference | None = None
    real: Pictures | None = None


def reference(path: str) -> Against:
    """A file of statistics, whose pictures, where it has some, are real ones."""
    held = read_reference(Path(path))
    real = None if held.image_shape is None else of_npz(held.path)
    return Against(identity=held.identity, statistics=held, real=real)


class Settings(Protocol):
    """Of a suite: files or folders by the extractor, or by `all`."""

    @property
    def references(self) -> Mapping[str, str]: ...
    @property
    def held_out(self) -> Mapping[str, str]: ...


def references_of(settings: Settings) -> dict[str, Against]:
    """Every reference; held-out data are only looked for, as their size is not known yet."""
    for name, path in settings.held_out.items():
        if not Path(path).expanduser().exists():
            raise RegscaleError(
                f"held_out.{name}",
                "names a file or a folder of real pictures",
                found=f"{path}, which does not exist",
                fix="Give an .npz as of references, a folder of pictures, or shards.",
            )
    return {name: reference(path) for name, path in settings.references.items()}


def held_out_of(settings: Settings, *, size: int, cluster: Cluster) -> dict[str, Against]:
    """Every held-out set, cropped to the size of what is judged."""
    return {n: _held_out(path, size, cluster) for n, path in settings.held_out.items()}


def _held_out(path: str, size: int, cluster: Cluster) -> Against:
    """A file as of a reference; or a folder or shards."""
    if path.endswith(".npz"):
        return reference(path)
    real = of_path(Path(path), size=size)
    return Against(identity=f"{Path(path).name}-{cluster.from_first(real.digest)}", real=real)


@dataclass(frozen=True, kw_only=True)
class View:
    """Real data in the eyes of one extractor."""

    setting: str  # that named the data
    identity: str
    evaluator: str
    width: int  # of the features
    statistics: Reference | None  # of this extractor
    others: str | None  # the extractor of statistics that do not serve here
    real: Collected | None

    @property
    def kind(self) -> str:
        """Of the extractor."""
        return self.evaluator.partition("-")[0]

    @cached_property
    def pool(self) -> Gaussian:
        """Of its features: the file's own, else of the pictures."""
        held = None if self.statistics is None else self.statistics.pool
        # an ADM file's statistics are Inception's; its pictures serve any extractor
        if held is not None and (self.kind == "inception" or len(held.mean) == self.width):
            return held
        if self.real is None:
            raise RegscaleError(
                f"{self.setting}: {self.identity}",
                "has neither statistics of this extractor nor pictures",
                found=f"{self.evaluator}, {self.width} wide"
                + (f"; statistics of {self.others}" if self.others else ""),
                fix="Make them: python -m regscale.evaluate reference SHARDS --size 256 "
                "--extractor KIND.",
            )
        return gaussian_of(self.real.features)

    @cached_property
    def spatial(self) -> Gaussian | None:
        """Of Inception's spatial features."""
        held = None if self.statistics is None else self.statistics.spatial
        if held is None and self.real is not None and self.real.spatial is not None:
            return gaussian_of(self.real.spatial)
        return held


def view(
    section: str,
    name: str,
    given: Mapping[str, Against],
    made: Collected,
    extractor: Extractor,
    place: Place,
) -> View:
    """What is given for the extractor `name`, or for all, in a section of settings. Collective."""
    against = given.get(name) or given.get("all")
    if against is None:
        raise RegscaleError(
            f"{section}.{name}",
            "is needed to compare features with",
            found=", ".join(given) or "no reference",
            fix=f"Give {section}.{name}=FILE.npz (python -m regscale.evaluate reference).",
        )
    made_by = None if against.statistics is None else against.statistics.evaluator
    serves = made_by in (None, made.evaluator)  # its pictures serve any extractor
    return View(
        setting=f"{section}.{name}",
        identity=against.identity,
        evaluator=made.evaluator,
        width=made.features.shape[1],
        statistics=against.statistics if serves else None,
        others=made_by,
        real=None if against.real is None else features(extractor, against.real, place),
    )
