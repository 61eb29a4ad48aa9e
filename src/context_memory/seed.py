"""The seed's command line, translated: every flag stands in a table beside the overrides that it means here.

python run.py --model llama-3.1-8b-instruct --dataset gsm8k --train --run_id my_run_v1 --no_wandb training.max_steps=500
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from context_memory import plugins
from context_memory.errors import UserError
from context_memory.models import SEED_DEFAULT

VALUES: dict[str, tuple[str, str]] = {
    "--model": ("model.name", "known name, hub id, folder or .gguf file"),
    "--run_id": ("run_id", "name of the run; the same name goes on"),
    "--load_path": ("model.adapter", "adapter to build on"),
    "--n_tok": ("scheme.n_comp", "comp tokens a segment"),
    "--lora_r": ("model.lora_r", "rank of the LoRA"),
    "--max_steps": ("training.max_steps", "updates"),
    "--lr": ("training.lr", "learning rate"),
    "--seed": ("training.seed", "seed"),
    "-b": ("training.batch_size", "rows of a micro-batch"),
    "--k": ("data.k", "demonstrations, or entries of a profile"),
}
"""Flag with a value -> the setting, and what it is."""
SWITCHES: dict[str, tuple[str, str]] = {
    "--no_wandb": ("training.wandb=false", "no Weights & Biases"),
    "--sink": ("pins=[sink,prompt]", "keep the first token, on which attention rests"),
}
"""Flag without a value -> the override."""
ONLINE: dict[str, list[str]] = {
    "concat_recur": ["scheme=concat", "scheme.recurrent=true"],
    "merge_recur": ["scheme=merge", "scheme.recurrent=true"],
    "concat": ["scheme=concat", "scheme.recurrent=false"],
    "merge": ["scheme=merge", "scheme.recurrent=false"],
    "gist": ["scheme=gist"],
}
"""`--attn_type`, where `--comp_type` is online."""
KINDS: dict[str, list[str]] = {"no": ["scheme=full"], "fixed": ["scheme=gist"], "neg_control": ["scheme=nothing", "pins=[]"]}
"""`--comp_type` otherwise. `pos_control` is refused: it puts comp tokens in and hides nothing."""
TURNS = ["boundary=turn", "pins=[sink]", "model.chat=false"]
"""How a context is cut that comes in segments; lines of text, as the original's were."""
DATASETS: dict[str, list[str]] = {
    "metaicl": ["data=icl", *TURNS],
    "lamp": ["data=personal", *TURNS],
    "dialog": ["data=dialogue", "data.corpus=dailydialog", "data.permissive=false", *TURNS],
    "soda": ["data=dialogue", "data.corpus=soda", *TURNS],
    "unified": ["data=mixture", "data.parts=[icl,dialogue]", *TURNS],
    "pretrain": ["data=mixture", "data.parts=[icl,dialogue,books]", *TURNS],
}
"""What the seed calls a dataset, where we call it otherwise; any of ours goes by its own name as well. Where there are no local files,
soda and dialog come from the hub (allenai/soda, CC BY 4.0; OpenRL/daily_dialog, non-commercial)."""
SOURCES = "soda and dialog (DailyDialog, non-commercial): $CCM_DATA/dialogue/{soda,dailydialog}/*.jsonl, else the hub"
HABITS = ["training.gradient_checkpointing=true"]
"""What the seed trains with, beyond our defaults."""


def parser() -> argparse.ArgumentParser:
    """The seed's flags."""
    out = argparse.ArgumentParser("run.py", description="The seed's command line; `ccm` is ours.", allow_abbrev=False)
    for flag, (setting, what) in VALUES.items():
        out.add_argument(flag, dest=setting, metavar="X", help=f"{what} ({setting}=X)")
    for flag, (override, what) in SWITCHES.items():
        out.add_argument(flag, dest=override, action="store_true", help=f"{what} ({override})")
    out.add_argument("--train", action="store_true", help="train; without it, evaluate")
    out.add_argument("--dataset", default="gsm8k", metavar="X", help=f"dataset: any of ours, or {', '.join(DATASETS)} ({SOURCES})")
    out.add_argument("--train_dataset", metavar="X", help="evaluate the adapter that --run_id has trained on this one")
    out.add_argument("--comp_type", choices=["online", *KINDS, "pos_control"], default="online")
    out.add_argument("--attn_type", choices=[*ONLINE], default="concat_recur")
    out.add_argument("--dry-run", action="store_true", help="say what would be trained")
    out.add_argument("overrides", nargs="*", metavar="key=value")
    out.set_defaults(**{"model.name": SEED_DEFAULT})
    return out


def translate(arguments: Sequence[str]) -> list[str]:
    """The arguments of `run.py` -> those of `ccm`.

    Raises:
        UserError: a mode of the seed's that compresses nothing.
        SystemExit: unknown flags (argparse's message, exit code 2).
    """
    given = vars(parser().parse_intermixed_args(list(arguments)))
    kind = given["comp_type"]
    if kind == "pos_control":
        raise UserError("--comp_type pos_control has comp tokens and hides nothing, so nothing is compressed; use --comp_type no.")
    scheme = ONLINE[given["attn_type"]] if kind == "online" else KINDS[kind]
    data = DATASETS.get(given["dataset"], [f"data={given['dataset']}"])
    data = [*data, *_shots(given["dataset"], [*data, *given["overrides"]], given.pop("data.k"))]
    if given["dataset"] in DATASETS:
        data = [*data, f"called={given['dataset']}"]  # unified and pretrain are both our mixture
    if source := given["train_dataset"]:
        given["model.adapter"] = given["model.adapter"] or _trained_on(source, given)
    if kind in ("no", "neg_control"):
        given["scheme.n_comp"] = None  # there are no comp tokens to count
    values = [f"{setting}={given[setting]}" for setting, _ in VALUES.values() if given.get(setting) is not None]
    switches = [override for override, _ in SWITCHES.values() if given[override]]
    habits = HABITS if given["train"] else []
    command = ["train", *(["--dry-run"] if given["dry_run"] else [])] if given["train"] else ["evaluate"]
    return [*command, *scheme, *data, *values, *switches, *habits, *given["overrides"]]


def _shots(dataset: str, overrides: Sequence[str], k: str | None) -> list[str]:
    """`--k`, for the dataset or for those parts of a mixture that have it.

    Raises:
        UserError: nothing there has it.
    """
    if k is None:
        return []
    said = {key: value for key, _, value in (o.partition("=") for o in overrides)}
    try:
        kind = plugins.find("data", said["data"])
        parts = said["data.parts"].strip("[]").split(",") if "data.parts" in said else getattr(kind(), "parts", [])
        having = [part for part in map(str.strip, parts) if _has_k(plugins.find("data", part))]
    except LookupError:
        return [f"data.k={k}"]  # who reads the settings says what there is
    if having:
        return [f"data.settings={{{','.join(f'{part}:{{k:{k}}}' for part in having)}}}"]
    if not _has_k(kind):
        what = "a number of demonstrations, or of entries of a profile"
        raise UserError(f"--k {k} is {what}, and dataset '{dataset}' has neither; leave it out.")
    return [f"data.k={k}"]


def _has_k(kind: type) -> bool:
    return any(f.name == "k" for f in dataclasses.fields(kind))


def _trained_on(source: str, given: Mapping[str, Any]) -> str:
    """Where the run's training on that dataset has left its adapter."""
    if given["train"] or not given["run_id"]:
        raise UserError("--train_dataset evaluates what was trained before: leave --train out and name the run with --run_id.")
    output = next((o.removeprefix("output=") for o in given["overrides"] if o.startswith("output=")), "result")
    return f"{output}/{source}/{given['run_id']}/adapter"
