"""`ccm boundary train|evaluate`: the classifier that says where a segment ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from context_memory.boundaries.classifier import Classifier
    from context_memory.config import Config
    from context_memory.model import CompressedLM
    from context_memory.telling import Told

app = typer.Typer(help="A learned boundary: teach a classifier where segments end (boundary=classifier), and see how well it tells.")

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value; boundary= names the policy to learn from, rules if none is given.")]
Adapter = Annotated[Path, typer.Option(help="The compression adapter that the classifier is for; it is kept in its folder.")]
Problems = Annotated[int, typer.Option(min=10, help="How many problems to take.")]


@app.command()
def train(
    adapter: Adapter,
    overrides: Overrides = None,
    problems: Problems = 200,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of AdamW.")] = 5e-5,
    width: Annotated[int, typer.Option(min=1, help="Units of the hidden layer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the division of the problems, and of the head.")] = 0,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write, instead of the adapter's classifier.safetensors.")] = None,
) -> None:
    """Teach a classifier from solutions that a policy (or an annotated file, data=gsm8k data.path=FILE) has cut.

    The model stays as it is; a two-layer perceptron learns from its hidden states.
    """
    from context_memory import head, telling
    from context_memory.boundaries.classifier import FILE
    from context_memory.errors import UserError
    from context_memory.records import facts_of_this_run

    place = head.place(out, adapter / FILE)
    config, lm, told = _told(adapter, overrides, recipe, "train", problems)
    parts = telling.divide(told, seed)
    try:
        found = head.fit(parts["train"].hidden, parts["train"].ends, epochs=epochs, lr=lr, width=width, seed=seed)
    except ValueError as e:
        raise UserError(str(e)) from e
    tau = telling.best_tau(found, parts["validation"])
    report = telling.judge(found, parts["test"], tau) | {"all_problems": len(told.problem.unique()), **facts_of_this_run()}
    head.save(found, place, lm.origin | {"adapter": lm.card.files if lm.card else {}, "labels": config.boundary["name"], "tau": tau})
    _publish(report, place)
    print(f"the best F1 on validation is at tau={tau:g}: ccm evaluate --adapter {adapter} boundary=classifier boundary.tau={tau:g}")


@app.command()
def evaluate(
    adapter: Adapter,
    overrides: Overrides = None,
    problems: Problems = 100,
    split: Annotated[str, typer.Option(help="Which examples: train, validation or test.")] = "test",
    path: Annotated[Path | None, typer.Option(help="The classifier's file, if it is not the adapter's.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings; overrides come after it.")] = None,
) -> None:
    """Precision, recall, F1 and AUC of a classifier against the places where a policy ends segments; a curve over tau."""
    from context_memory import telling
    from context_memory.boundaries.classifier import Classifier
    from context_memory.records import facts_of_this_run

    policy = Classifier(path=str(path or adapter))
    found, facts = policy.trained
    _, _, told = _told(adapter, overrides, recipe, split, problems, policy)
    report = telling.judge(found, told, facts.get("tau", policy.tau)) | facts_of_this_run()
    _publish(report, policy.file.with_name(f"{policy.file.stem}-{split}"))


def _told(
    adapter: Path, overrides: list[str] | None, recipe: str | None, split: str, problems: int, policy: Classifier | None = None
) -> tuple[Config, CompressedLM, Told]:
    """Solutions with the hidden states of the adapter's model, which the policy, if there is one, must be made for."""
    from context_memory import console, rows, telling

    given = list(overrides or [])
    if recipe is None and not any(o.startswith(("boundary=", "boundary.")) for o in given):
        given.append("boundary=rules")
    config = rows.configure(given, recipe, adapter)
    lm = rows.load_row(config)
    if policy is not None:
        policy.check(lm.origin)
    examples = list(config.examples(split, problems))
    with console.bar() as progress:
        return config, lm, telling.collect(lm, config.encoder(lm.tokenizer), examples, progress)


def _publish(report: dict[str, Any], place: Path) -> None:
    """Print what is known of a classifier; write it beside its file as JSON and PNG."""
    from rich.table import Table

    from context_memory.atomic import write_json
    from context_memory.console import terminal
    from context_memory.plots import curve

    low, high = report["auc_interval"]
    what = f"{report['boundaries']:,} boundaries in {report['tokens']:,} tokens of {report['problems']:,} problems"
    title = f"{what}, AUC {report['auc']:.4f} [{low:.4f}, {high:.4f}]"
    table = Table(title=title, title_justify="left")
    for column in ("tau", "precision %", "recall %", "F1 %", "tokens a segment"):
        table.add_column(column, justify="right")
    for q in report["curve"]:
        length = f"{1 / q['rate']:.1f}" if q["rate"] else ""
        table.add_row(f"{q['tau']:g}", *(f"{100 * q[k]:.1f}" for k in ("precision", "recall", "f1")), length)
    console = terminal()
    console.print(table)
    q = report["chosen"]
    told = ", ".join(f"{name} {100 * q[name.lower()]:.1f}" for name in ("precision", "recall", "F1"))
    low, high = q["f1_interval"]
    console.print(
        f"at tau={q['tau']:g}, the best on the problems to validate with: {told} [{100 * low:.1f}, {100 * high:.1f}] %", highlight=False
    )
    for key, what in (("follows", "its boundaries follow"), ("follows_labels", "those that it was to find follow")):
        console.print(f"{what}: " + ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in report[key].items()), highlight=False)
    write_json(place.with_suffix(".json"), report)
    picture = curve(report["curve"], place.with_suffix(".png"))
    console.print(f"written: {place.with_suffix('.json')}, {picture}", soft_wrap=True, highlight=False)
