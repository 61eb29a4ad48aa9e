"""`ccm train`: train an adapter."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. scheme=merge training.max_steps=500")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
    run_id: Annotated[str | None, typer.Option("--run_id", "--run-id", help="Name of the run; the same name goes on.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, how long and in how much memory.")] = False,
    no_wandb: Annotated[bool, typer.Option("--no_wandb", "--no-wandb", help="No Weights & Biases.")] = False,
) -> None:
    """Train an adapter: scheme=full an ordinary task adapter, any other scheme a compression adapter on top of model.adapter.

    With model.joint=true both at once, the task learnt with the memory on.
    """
    from context_memory.compose import load
    from context_memory.overrides import written

    given = list(overrides or [])
    given += [f"run_id={written(run_id)}"] if run_id else []
    given += ["training.wandb=false"] if no_wandb else []
    config = load(given, recipe)
    run(config, dry_run)


def run(config: object, dry_run: bool = False) -> None:
    """What the command does once it has a configuration; `run.py` does the same."""
    from context_memory.adapter_page import said_of
    from context_memory.config import Config
    from context_memory.data._licences import non_commercial
    from context_memory.estimate import estimate
    from context_memory.joint import TASK
    from context_memory.loading import licence_of
    from context_memory.train import train as train_

    assert isinstance(config, Config)
    if dry_run:
        print(estimate(config))
        return
    result = train_(config)
    best = f", best evaluation loss {result.best_loss:.4f} at step {result.best_step}" if result.best_loss is not None else ""
    print(f"{'finished' if result.finished else 'stopped, the same command goes on'} after {result.steps} steps{best}")
    print(f"adapter: {result.adapter}")
    if config.model.joint:
        print(f"its task adapter, which is merged first and has to go along: {result.folder / TASK}")
    if result.asked:
        raise typer.Exit(130)
    if non_commercial(licence := licence_of(config)):
        print(f"licence of its data: {said_of(licence)}")
