"""The study as Markdown: every share with its 95% interval and its number of pictures."""

from collections.abc import Sequence
from itertools import combinations, product
from statistics import fmean

from benchmarks._evidence_figures import Change, Result, mean_of, sign_flip
from benchmarks._evidence_study import ARMS, OWN, SHUFFLED
from regscale.evaluation.rates import Rate, combined
from regscale.evaluation.shapecaps import CHANCE, Split, Table


def by_run(results: Sequence[Result]) -> str:
    """Each run with its controls: shares of pictures, the mean of kinds."""
    names = ("run", "seen", "seen, strict", "held out", "shuffled prompts", "null prompt")
    rows = []
    for each in results:
        null = each.null
        rows.append(
            [
                f"{each.run.arm}, seed {each.run.seed}",
                share(each.own),
                share(each.own, rule="strict"),
                share(each.own, "held_out"),
                share(each.own, rule="shuffled"),
                "" if null is None else share(null),
            ]
        )
    return _table(names, rows)


def by_kind(results: Sequence[Result]) -> str:
    """Each run's loose shares by kind and split; intervals are Wilson's."""
    cells = list(dict.fromkeys(cell for each in results for cell in each.own.cells))
    names = ("run", *(f"{split.replace('_', ' ')} `{kind}`" for kind, split in cells))
    rows = []
    for each in results:
        own = each.own
        shares = [
            shown(own.rate(*cell), own.cells[cell].number) if cell in own.cells else ""
            for cell in cells
        ]
        rows.append([f"{each.run.arm}, seed {each.run.seed}", *shares])
    chance = [f"{CHANCE[kind]:.3f}" if split == "seen" else "" for kind, split in cells]
    return _table(names, [*rows, ["chance: a right picture of another caption", *chance]])


def over_seeds(results: Sequence[Result]) -> str:
    """Means of each arm, with intervals over seeds, which pictures have no part in."""
    names = ("arm", "seeds", "seen", "held out", "steps", "minutes a run", "machine")
    rows = []
    for arm in (*ARMS, SHUFFLED):
        mine = [each for each in results if each.run.arm == arm]
        if mine:
            rows.append(
                [
                    arm,
                    ", ".join(str(each.run.seed) for each in mine),
                    _spread([each.seen() for each in mine]),
                    _spread([_held_out(each) for each in mine if each.own.kinds("held_out")]),
                    _range([each.steps for each in mine]),
                    _range([each.seconds / 60 for each in mine], digits=1),
                    "; ".join(dict.fromkeys(name for each in mine for name in each.machines)),
                ]
            )
    return _table(names, rows)


def paired(results: Sequence[Result]) -> str:
    """Arm less arm, seed by seed."""
    names = ("difference", "of", "by seed, 95% of pictures", "mean, 95% over seeds", "exact p")
    rows = []
    splits: tuple[Split, ...] = ("seen", "held_out")
    for (first, second), split in product(combinations(ARMS, 2), splits):
        before, after = (
            {
                each.run.seed: each.own.overall(split)
                for each in results
                if each.run.arm == arm and each.own.kinds(split)
            }
            for arm in (first, second)
        )
        gaps = [combined([after[s], before[s]], [1, -1]) for s in before if s in after]
        if gaps:
            values = [gap.value for gap in gaps]
            p = f"{sign_flip(values):.2f} (least possible {2 / 2 ** len(gaps):.2g})"
            told = "; ".join(map(_signed, gaps))
            name = split.replace("_", " ")
            rows.append([f"{second} - {first}", name, told, _spread(values, sign="+"), p])
    return _table(names, rows)


def ablations(changes: Sequence[Change]) -> str:
    """One change each; intervals of differences are of pictures alone, of one training each."""
    names = ("change", "seen", "held out", "compared with", "seen, less that", "steps", "minutes")
    tables = {each.name: each.table for each in changes}
    rows = []
    for name, result, table, against in changes:
        before = tables.get(against)
        less = "" if before is None else _less(table, before)
        trained = result.drawings[OWN] is table
        minutes = f"{result.seconds / 60:.1f}" if trained else "the same run"
        shares = share(table), share(table, "held_out")
        rows.append([name, *shares, against, less, f"{result.steps:,}", minutes])
    return _table(names, rows)


def share(table: Table, split: Split = "seen", *, rule: str = "loose") -> str:
    """The mean of the kinds, with the number of their pictures."""
    kinds = table.kinds(split)
    number = sum(table.cells[kind, split].number for kind in kinds)
    return shown(table.overall(split, rule=rule), number) if kinds else ""


def shown(rate: Rate, number: int) -> str:
    """A share, its interval and of how many."""
    return f"{rate}, n {number:,}"


def _less(table: Table, before: Table) -> str:
    return _signed(combined([table.overall(), before.overall()], [1, -1]))


def _signed(gap: Rate) -> str:
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _held_out(result: Result) -> float:
    return result.own.overall("held_out").value


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    """The mean and Student's interval, of n seeds."""
    found = mean_of(values)
    if found is None:
        return f"{fmean(values):{sign}.3f}, 1 seed" if values else ""
    interval = f"[{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
    return f"{found.value:{sign}.3f} {interval}, {len(values)} seeds"


def _range(values: Sequence[float], *, digits: int = 0) -> str:
    low, high = (f"{end:,.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
