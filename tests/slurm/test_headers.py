"""Launchers say what they ask for, and Slurm reads the same from them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import ENVIRONMENT, Site
from tests.slurm.lab import CONTROL

FOLDER = Path(__file__).parents[2] / "launchers"
SHARED = FOLDER / "job.sh"
LAUNCHERS = sorted(path for path in FOLDER.glob("*.sh") if path != SHARED)
NEEDED = {"signal", "requeue", "open-mode", "output", "time", "nodes", "ntasks-per-node"}


def header(path: Path) -> dict[str, str]:
    """The options of a launcher."""
    pairs = re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text())
    return dict(pairs)


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_says_what_it_asks_for(path: Path) -> None:
    text, options = path.read_text(), header(path)
    assert set(options) >= NEEDED
    asked = re.findall(r"(?m)^# Asks for +(.+)$", text)
    assert len(asked) == 1, "one line tells nodes, tasks and time"
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    gpus = options.get("gres", "")
    told = [f"{nodes} node{'s' * (nodes > 1)}"]
    each = f"{tasks} task{'s' * (tasks > 1)} a node"
    told += [f"{gpus.removeprefix('gpu:')} GPUs and {each}" if gpus else each]
    told += [f"{options['cpus-per-task']} CPUs a task"]
    told += ["all memory"] if options.get("mem") == "0" else []
    hours, minutes, _ = (int(part) for part in options["time"].split(":"))
    told += [f"{hours} hours" if hours else f"{minutes} minutes"]
    assert asked[0] == ", ".join(told)
    before = options["signal"].partition("@")[2]
    assert f"\n# Stops        {before} seconds before the end, saves, and requeues itself" in text
    assert options["signal"].startswith("B:USR1@")
    assert int(before) >= 60, "Slurm looks at limits every 30 s"
    assert text.rstrip().endswith('"$@"')
    assert path.stat().st_mode & 0o100


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_slurm_reads_from_the_header_what_it_says(path: Path, site: Site) -> None:
    options = header(path)
    command = f"sbatch --test-only launchers/{path.name} 2>&1"
    told = site.lab.on(CONTROL, "bash", "-c", command, folder=site.folder, **ENVIRONMENT)
    found = re.search(r"using (\d+) processors on nodes (\S+) in partition", told)
    assert found, told
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    asked = nodes * tasks * int(options["cpus-per-task"])
    whole_nodes = 128 * nodes
    assert int(found[1]) == (whole_nodes if "exclusive" in options else asked)
    assert found[2] == ("n1" if nodes == 1 else f"n[1-{nodes}]")


def test_a_launcher_outside_of_sbatch_says_how_to_use_it() -> None:
    done = subprocess.run(
        ["bash", str(FOLDER / "digits.sh")],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode
    assert "submit with sbatch" in done.stderr


def test_what_a_site_sources_may_read_unset_variables(tmp_path: Path) -> None:
    """As `module load` and `conda activate` do; what the launchers misspell ends them."""
    (tmp_path / "launchers").mkdir()
    site = 'REGSCALE_ENV="$CONDA_PREFIX_7/envs/a"\n'
    (tmp_path / "launchers/site.env").write_text(site)
    done = subprocess.run(
        ["bash", "-c", f'source "{SHARED}"; echo "${{python[0]}}"; : "$UNSET"; echo further'],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"},
    )
    assert done.stdout == "/envs/a/bin/python\n"
    assert "UNSET: unbound variable" in done.stderr


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck missing: apt-get install shellcheck")
    files = [*FOLDER.glob("*.sh"), *FOLDER.glob("*.example"), *FOLDER.glob("nccl/*.env")]
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, files)], cwd=FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
