"""The page of the study: what its runs' own files say, written between two lines of the page."""

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import fmean

from PIL.Image import Image

from benchmarks import _evidence_plot, _evidence_tables
from benchmarks._evidence_figures import Result, best, changes, read
from benchmarks._evidence_study import ARMS, Study
from regscale.errors import RegscaleError
from regscale.files import replacing

BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
OF_ONE_SEED = """\
Of one seed there is no interval over seeds: nothing here tells a difference of arms from that of
two trainings."""
OF_SEEDS = """\
Intervals over seeds are Student's and take seeds for normal. What {n} seeds can show without that
is in the last column: the permutation test of the signs of {n} differences cannot give a p below
{least:.2g}, so {verdict}."""
ABLATIONS = """\
Change by change from {base}, seed {seed}. The interval of a difference (Newcombe's) is that of the
drawn pictures; another training seed is not in it. {spread}"""
SPREAD = """\
The seeds of {base} alone differ by up to {by:.3f}: a smaller
difference says nothing. The base is one of them, {off:+.3f} from their mean of {mean:.3f}: add
that to a difference from it to compare with the mean."""
NO_SPREAD = "How far seeds of {base} lie apart, one seed cannot tell."


def write(study: Study, page: Path, images: Path) -> list[str]:
    """Tables into the page, plots beside it; the runs that are left out."""
    found = [read(study, run) for run in study.arms()]
    arms = [each for each in found if isinstance(each, Result)]
    if not arms:
        raise RegscaleError(
            study.runs,
            "has no finished run to report",
            found="; ".join(str(each) for each in found),
            fix="Run it: python -m benchmarks.evidence run.",
        )
    base = best(arms, study.seeds)
    changed = [] if base is None else [read(study, run) for run in study.ablations(base)]
    results = [each for each in (*found, *changed) if isinstance(each, Result)]
    _check_lengths(study, results)
    missing = [each for each in (*found, *changed) if isinstance(each, str)]
    missing += dict.fromkeys(line for each in results for line in each.not_drawn())
    trained = [each for each in changed if isinstance(each, Result)]
    images.mkdir(parents=True, exist_ok=True)
    parts = [_opening(study, missing), *_arms(arms, page, images)]
    if trained:
        parts += _ablations(arms, trained, page, images)
    _between(page, "\n\n".join(parts))
    return missing


def _check_lengths(study: Study, results: Sequence[Result]) -> None:
    """Runs with other numbers of steps are not compared."""
    steps = {each.steps for each in results}
    if len(steps) > 1:
        raise RegscaleError(
            study.runs,
            "has finished runs of different lengths, which cannot be compared",
            found=", ".join(f"{each.run.name}: {each.steps}" for each in results),
            fix="Remove the folders of those that are too short.",
        )


def _opening(study: Study, missing: Sequence[str]) -> str:
    settings = " ".join([str(study.config), *study.overrides])
    seeds = ", ".join(map(str, study.seeds))
    told = [
        f"`python -m benchmarks.evidence report`, {date.today().isoformat()}: `{settings}`, "
        f"{study.num_prompts} prompts of each kind and split, seeds {seeds}."
    ]
    if missing:
        told.append("\n".join(["Left out, not finished:", "", *(f"* {each}" for each in missing)]))
    return "\n\n".join(told)


def _arms(arms: Sequence[Result], page: Path, images: Path) -> list[str]:
    """Four tables and two plots."""
    parts = ["### Arms", _evidence_tables.over_seeds(arms)]
    pairs = [each for each in arms if each.run.arm in ARMS]
    if len({each.run.arm for each in pairs}) > 1:
        parts += [
            "### Differences",
            _evidence_tables.paired(pairs),
            _seeds(len({each.run.seed for each in pairs})),
        ]
    parts += ["### Run by run", _evidence_tables.by_run(arms)]
    parts += ["### By kind", _evidence_tables.by_kind(arms)]
    tables = {f"{each.run.arm}, seed {each.run.seed}": each.own for each in arms}
    drawn = _evidence_plot.of_tables(tables, title="share of pictures that show their prompt, 95%")
    parts.append(_picture(drawn, "evidence-arms.png", "Shares of each run", page, images))
    if any(each.curve for each in pairs):
        drawn = _evidence_plot.losses(pairs)
        parts.append(_picture(drawn, "evidence-loss.png", "Losses of the arms", page, images))
    return parts


def _ablations(
    arms: Sequence[Result], trained: Sequence[Result], page: Path, images: Path
) -> list[str]:
    base, *others = trained
    name, seed, rows = base.run.arm, base.run.seed, changes(base, others)
    own = [each.seen() for each in arms if each.run.arm == name]
    title = f"one change each of {name}, seed {seed}; 95% of pictures alone"
    drawn = _evidence_plot.of_tables({row.name: row.table for row in rows}, title=title)
    return [
        "### Ablations",
        ABLATIONS.format(base=name, seed=seed, spread=spread(base, own)),
        _evidence_tables.ablations(rows),
        _picture(drawn, "evidence-ablations.png", "Shares of each change", page, images),
    ]


def spread(base: Result, own: Sequence[float]) -> str:
    """How far the seeds of its arm lie apart, and the base from their mean."""
    if len(own) < 2:
        return NO_SPREAD.format(base=base.run.arm)
    mean = fmean(own)
    return SPREAD.format(
        base=base.run.arm, by=max(own) - min(own), off=base.seen() - mean, mean=mean
    )


def _seeds(number: int) -> str:
    if number < 2:
        return OF_ONE_SEED
    least = 2 / 2**number
    verdict = (
        "no difference of these arms is significant at 5% by it, whatever its size"
        if least > 0.05
        else "a difference of one sign in all of them is significant at 5% by it"
    )
    return OF_SEEDS.format(n=number, least=least, verdict=verdict)


def _picture(drawn: Image, name: str, text: str, page: Path, images: Path) -> str:
    drawn.save(images / name)
    return f"![{text}]({os.path.relpath(images / name, page.parent)})"


def _between(page: Path, text: str) -> None:
    """Replace what stands between the two lines."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RegscaleError(
            page,
            "has no place for the report",
            found="no two lines that mark it",
            fix=f"Write {BEGIN} and {END} where it belongs.",
        )
    with replacing(page) as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}".encode())
