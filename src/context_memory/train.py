"""`ccm train`: a configuration -> an adapter in `result/<dataset>/<run_id>/adapter`. The same command again goes on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import TrainingArguments

from context_memory import adapter as folders
from context_memory import gate, head, joint
from context_memory.atomic import read_json, write_json
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.job import Job, lower, prepare
from context_memory.loading import card_of, numbers
from context_memory.material import material
from context_memory.model import CompressedLM
from context_memory.profiling import TRAINING, EachStep, profiled
from context_memory.progress import Clock, Finite, Progress, trackers
from context_memory.trainer import CcmTrainer, Learner, newest, put_back

LENGTH = ("max_steps", "epochs", "patience")
"""Settings of `training` that say how long a run is,"""
BESIDE = ("max_minutes", "eval_steps", "eval_samples", "save_steps", "log_steps", "wandb", "report_to", "threads", "profile", "save_dtype")
"""and those that are beside the point: a run may be gone on with under another value of any of them."""


@dataclass(frozen=True)
class Result:
    """What a training left behind."""

    folder: Path
    adapter: Path
    steps: int
    finished: bool
    """False where a limit of time or a signal came first: the same command goes on."""
    best_loss: float | None = None
    best_step: int | None = None
    final_loss: float | None = None
    """Evaluation loss of the last step."""
    asked: bool = False
    """A signal asked it to stop."""


def significant(config: Config) -> dict[str, Any]:
    """The part of a configuration that makes it this training and no other."""
    tree = config.to_dict()
    tree["training"] = {k: v for k, v in tree["training"].items() if k not in LENGTH + BESIDE}
    tree["data"] = {k: v for k, v in tree["data"].items() if k != "max_eval_samples"}
    return {k: tree[k] for k in ("model", "data", "scheme", "boundary", "pins", "training")}


def run_folder(config: Config) -> Path:
    """`<output>/<dataset>/<run_id>` (`Config.home`); without a run_id, one that follows from the configuration."""
    run_id = config.run_id
    if not run_id:
        digest = hashlib.sha256(json.dumps(significant(config), sort_keys=True).encode()).hexdigest()[:6]
        n = config.scheme.get("n_comp")
        run_id = f"{config.scheme['name']}{f'-n{n}' if n else ''}-{digest}"
    return config.home() / run_id


def train(config: Config, lm: CompressedLM | None = None) -> Result:
    """Train, or go on with, the run of this configuration.

    Raises:
        UserError: see `job.prepare`; also a run_id that belongs to another configuration or to other data, or is being trained right now.
    """
    folder = run_folder(config)
    main = int(os.environ.get("RANK", 0)) == 0
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) if main else nullcontext():
        if main:
            _same_run(folder, config, material(config, model=lm is None))
        if (done := _finished(folder, config)) is not None:
            return done
        told = trackers(config, folder)
        return _run(prepare(config, lm), folder, told, main)


def _run(job: Job, folder: Path, told: list[str], main: bool) -> Result:
    config, lm = job.config, job.lm
    learner = Learner(lm, config.training.loss)
    last = newest(folder / "checkpoints")
    if last and (there := int(last.name.rpartition("-")[2])) > job.steps:
        raise UserError(f"run '{folder.name}' is at step {there}, past the {job.steps} that are asked for; {_again(folder)}.")
    clock, progress = Clock(config.training.max_minutes), Progress(job.steps, main)

    def journal(entry: dict[str, Any]) -> None:
        with (folder / "log.jsonl").open("a") as out:
            out.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")

    if main:
        print(_headline(job, folder, last), file=sys.stderr, flush=True)
    trainer = CcmTrainer(learner, arguments(job, folder, told), job, journal, callbacks=[clock, progress, Finite()])
    progress.trainer = trainer
    with clock.listening(), _fits(config), profiled(config.training.profile and main, folder, TRAINING) as tick:
        trainer.add_callback(EachStep(tick))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        final = None if clock.asked else trainer.last_evaluation()
    progress.close()
    steps = trainer.state.global_step
    best = trainer.best
    if best is not None:
        put_back(learner, best[2])
    lm.eval()
    loss, step = (best[0], best[1]) if best else (None, None)
    result = Result(folder, folder / "adapter", steps, not clock.stopped, loss, step, final, clock.asked)
    if main:
        if lm.joint:
            lm.task = joint.save_task(lm, at := folder / joint.TASK, card_of(lm, config, at), numbers(config.training.save_dtype))
        folders.save(lm, result.adapter, card_of(lm, config, result.adapter), numbers(config.training.save_dtype))
        head.bring_along([config.make("boundary"), *config.make("pins")], result.adapter, lm.origin)
        note = {k: v for k, v in asdict(result).items() if k not in ("folder", "adapter")}
        write_json(folder / "result.json", {**note, "length": _length(config)})
    return result


def _headline(job: Job, folder: Path, last: Path | None) -> str:
    parts = [f"{gate.trainable(job.lm):,} trained parameters, scheme {job.lm.scheme.name}, gate {job.lm.gate}, {job.steps} steps"]
    parts += [f"going on from {last.name}"] if last else []
    return f"{folder}: {', '.join([*parts, *job.remarks()])}"


def arguments(job: Job, folder: Path, told: list[str]) -> TrainingArguments:
    """The Trainer's arguments; `told` are the trackers."""
    t = job.config.training
    cpu = job.lm.device.type == "cpu"
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"), max_steps=job.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=t.accumulate, average_tokens_across_devices=True,
        optim="adamw_torch", learning_rate=t.lr, lr_scheduler_type=t.schedule, warmup_steps=round(t.warmup * job.steps),
        weight_decay=t.weight_decay, max_grad_norm=t.clip, seed=t.seed, data_seed=t.seed, use_cpu=cpu,
        logging_steps=t.log_steps, logging_nan_inf_filter=False, disable_tqdm=True, report_to=told, run_name=folder.name,
        save_strategy="steps", save_steps=t.save_steps, save_total_limit=2,
        eval_strategy="steps" if job.evaluation is not None else "no", eval_steps=t.eval_steps,
        remove_unused_columns=False, prediction_loss_only=True, label_names=["labels"],
        dataloader_num_workers=0, dataloader_pin_memory=not cpu,
        ddp_backend="gloo" if cpu and int(os.environ.get("WORLD_SIZE", 1)) > 1 else None,
        ddp_find_unused_parameters=False, ddp_broadcast_buffers=False,
    )  # fmt: skip


def _length(config: Config) -> dict[str, Any]:
    return {name: getattr(config.training, name) for name in LENGTH}


def _finished(folder: Path, config: Config) -> Result | None:
    """What a finished run left behind, if this is all that is asked for again."""
    note = folder / "result.json"
    if not note.is_file() or not (folder / "adapter").is_dir():
        return None
    tree = read_json(note, _again(folder))
    if not tree.get("finished") or tree.pop("length", None) != _length(config):
        return None
    return Result(folder, folder / "adapter", **{k: v for k, v in tree.items() if k in {f.name for f in fields(Result)}})


def _same_run(folder: Path, config: Config, of: dict[str, str]) -> None:
    """Raises UserError if the folder holds a run of another configuration or material; else remembers this one."""
    note = folder / "config.json"
    if note.is_file() and (newest(folder / "checkpoints") is not None or (folder / "result.json").is_file()):
        again = _again(folder)
        tree = read_json(note, again)
        a, b = _flat(significant(Config.from_dict(tree))), _flat(json.loads(json.dumps(significant(config))))
        for k in sorted({*a, *b}):
            if a.get(k) != b.get(k):
                raise UserError(f"run '{folder.name}' was started with {k}={a.get(k)}, got {k}={b.get(k)}; {again}.")
        for k, was in tree.get("material", {}).items():
            if k in of and of[k] != was:
                raise UserError(f"run '{folder.name}' was started with another content of what {k} names ({was}, now {of[k]}); {again}.")
    write_json(note, {**config.to_dict(), "material": of})


def _again(folder: Path) -> str:
    return f"choose another run_id, or delete '{folder}' to start again"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else trains this run meanwhile."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"run '{folder.name}' is being trained by another process; wait, or choose another run_id.") from None


@contextmanager
def _fits(config: Config) -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(e):
            raise
        raise UserError(f"a micro-batch does not fit the memory of this device ({str(e).splitlines()[0]}). {lower(config)}") from e
