"""The whole story in one command: a frozen model with a task adapter gets a memory, trained in minutes, and a table says what
that memory keeps and what it weighs, beside the shipped one, the full context, and none at all.

Everything is small enough for two CPU cores and six gigabytes. The same command again goes on where it stopped.
"""

from __future__ import annotations

import resource
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from context_memory import compose, console, control, report, rows
from context_memory.adapter import CARD
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.fetch import get
from context_memory.report import Line
from context_memory.train import train

RECIPE = "recipes/quickstart.yaml"
TASK = "adapters/smollm2-135m-instruct-tally-task"
SHIPPED = "adapters/smollm2-135m-instruct-tally-concat"
PROBLEMS = 32
SMOKE = ("training.max_steps=2", "training.tokens_per_batch=512", "generation.max_new_tokens=64")
"""Settings that show that everything runs, and nothing else."""


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    config: Config
    shipped: Path
    problems: int
    out: Path


def plan(overrides: Sequence[str] = (), *, task: Path | None = None, shipped: Path | None = None, smoke: bool = False,
         problems: int | None = None, out: Path | None = None) -> Plan:  # fmt: skip
    """Check that all is there before anything long begins.

    Raises:
        UserError: the recipe or a shipped adapter is missing.
    """
    recipe = place(RECIPE, "get the repository whole")
    task = task or place(TASK, "make it again with: ccm train --recipe recipes/tally_task.yaml")
    shipped = shipped or place(SHIPPED, "make it again with: ccm train --recipe recipes/tally_concat.yaml")
    for folder in (task, shipped):
        if not (folder / CARD).is_file():
            raise UserError(f"no adapter in '{folder}': {CARD} is missing; get the folder again.")
    out = out or Path("result") / ("quickstart-smoke" if smoke else "quickstart")
    common = [f"model.adapter={task}", f"output={out}", "run_id=trained", "training.wandb=false", *(SMOKE if smoke else ())]
    config = compose.load([*common, *overrides], recipe)
    return Plan(config, shipped, problems or (4 if smoke else PROBLEMS), out)


def run(p: Plan, fresh: bool = False) -> list[Line]:
    """Train, evaluate, print, and say what to try next."""
    start, say = time.monotonic(), Console(stderr=True, highlight=False).print
    if fresh:
        shutil.rmtree(p.out, ignore_errors=True)
    name, t = p.config.model.name, p.config.training
    say(f"[bold]1/3 model[/] {name}: {get(name)}")
    limit = f", {t.max_minutes:g} minutes at most" if t.max_minutes else ""
    say(f"[bold]2/3 training[/] {p.config.scheme['n_comp']} comp tokens a reasoning step ({t.max_steps} steps{limit})")
    trained = train(p.config)
    if trained.asked:
        raise UserError(f"stopped after {trained.steps} steps, as asked; the same command goes on.")
    assert trained.adapter is not None
    say(f"[bold]3/3 evaluation[/] on {p.problems} held-out problems, five ways")
    table = five(p, trained.adapter, trained.steps)
    with console.bar() as progress:
        records = rows.run(table, p.out / "evaluation", progress=progress)
    lines = report.publish(records, p.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    minutes = (time.monotonic() - start) / 60
    say(f"adapter: {trained.adapter}\n{minutes:.1f} minutes, {peak / 1e9:.1f} GB of memory at the most\n")
    say(_next(p, trained.adapter), markup=False, soft_wrap=True)
    return lines


def five(p: Plan, adapter: Path, steps: int) -> list[rows.Row]:
    """The rows of the table, all on the same problems; the window has as many entries as the shipped adapter, and the same words."""
    model = replace(p.config.model, adapter=str(adapter), attn_implementation="sdpa")
    evaluation = replace(p.config.evaluation, max_samples=p.problems, batch_size=32)
    full, mine, nothing = rows.rows_of(replace(p.config, model=model, evaluation=evaluation))
    theirs = rows.configure([f"model.name={model.name}", f"model.dtype={model.dtype}"], adapter=p.shipped)
    shipped = rows.Row("shipped", replace(theirs, data=p.config.data, evaluation=evaluation))
    return [full, replace(mine, name=f"just trained ({steps} steps)"), shipped, control.window(shipped), nothing]


def place(relative: str, advice: str) -> Path:
    """A file of the repository, from the working folder or from the checkout that this code runs from.

    Raises:
        UserError: it is in neither.
    """
    for root in (Path(), Path(__file__).resolve().parents[2]):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"'{relative}' is missing: it comes with the repository. Run this in a checkout, or {advice}.")


def _next(p: Plan, adapter: Path) -> str:
    question = next(e.prompt for e in p.config.make("data").examples("test") if len(e.prompt) < 300)
    tries = (
        ("ask it something", f"ccm generate --adapter {adapter} {shlex.quote(question)}"),
        ("see what a scheme hides", "ccm show scheme=concat 'ab|c|d'"),
        ("train longer", f"ccm train --recipe {RECIPE} training.max_steps=400 training.max_minutes=60 --run_id longer"),
        ("and see what that gained", "ccm evaluate --run_id longer evaluation.max_samples=200"),
        ("find where it forgets", f"ccm evaluate --adapter {p.shipped} data.min_steps=7 data.max_steps=12 --run_id far"),
    )
    return "What to try next:\n" + "\n".join(f"  # {why}\n  {command}" for why, command in tries)
