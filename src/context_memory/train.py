"""`ccm train`: a configuration -> an adapter in `result/<dataset>/<run_id>/adapter`. The same command again goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import TrainingArguments

from context_memory import adapter as folders
from context_memory import gate
from context_memory.batches import Collate, Rows, Schedule, _stacked
from context_memory.config import Config
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.loading import build, card_of
from context_memory.model import CompressedLM
from context_memory.progress import Clock, Progress, trackers
from context_memory.trainer import CcmTrainer, Learner, newest, put_back

MAY_CHANGE = ("max_steps", "epochs", "max_minutes", "eval_steps", "eval_samples", "patience", "save_steps", "log_steps", "wandb", "report_to", "threads")
"""Settings of `training` that a run may be gone on with under another value."""


@dataclass
class Result:
    """What a training left behind."""

    folder: Path
    adapter: Path | None
    steps: int
    finished: bool
    """False where a limit of time or a signal came first: the same command goes on."""
    best_loss: float | None
    best_step: int | None
    final_loss: float | None
    """Evaluation loss of the last step."""


@dataclass
class Job:
    """Everything that a training needs, made from a configuration."""

    config: Config
    lm: CompressedLM
    schedule: Schedule
    evaluation: Schedule | None
    collate: Collate
    steps: int


def significant(config: Config) -> dict[str, Any]:
    """The part of a configuration that makes it this training and no other."""
    tree = config.to_dict()
    training = {k: v for k, v in tree["training"].items() if k not in MAY_CHANGE}
    return {**{k: tree[k] for k in ("model", "data", "scheme", "boundary", "pins")}, "training": training}


def run_folder(config: Config) -> Path:
    """`<output>/<dataset>/<run_id>`; without a run_id, one that follows from the configuration."""
    run_id = config.run_id
    if not run_id:
        digest = hashlib.sha256(json.dumps(significant(config), sort_keys=True).encode()).hexdigest()[:6]
        n = config.scheme.get("n_comp")
        run_id = f"{config.scheme['name']}{f'-n{n}' if n else ''}-{digest}"
    return Path(config.output) / config.data["name"] / run_id


def prepare(config: Config, lm: CompressedLM | None = None) -> Job:
    """Model, data and schedule.

    Raises:
        UserError: settings that contradict each other, or a batch in which the scheme hides nothing.
    """
    threads(config.training.threads)
    lm = lm if lm is not None else build(config)
    if config.training.gradient_checkpointing:
        lm.base.gradient_checkpointing_enable({"use_reentrant": False})
    t = config.training
    encoder = Encoder(lm.tokenizer, config.make("boundary"), config.make("pins"), chat=config.model.chat, prompt=config.model.prompt)
    supervise = "memory" if lm.gate == "comp" else "all"
    longest = min(t.max_tokens, lm.max_positions)

    def rows(split: str, limit: int | None, ratio: float = 1.0) -> Rows:
        try:
            examples = config.make("data").examples(split)
        except ValueError as e:
            raise UserError(f"data={config.data['name']}: {e}") from e
        count = max(1, int(len(examples) * ratio))
        examples = examples[: min(count, limit) if limit is not None else count]
        return Rows(examples, encoder, lm.scheme, lm.positions, supervise, longest)

    train = rows("train", config.data["max_train_samples"], config.data["train_ratio"])
    limits = [n for n in (t.eval_samples, config.data["max_eval_samples"]) if n is not None]
    schedule = Schedule(train, t)
    world = int(os.environ.get("WORLD_SIZE", 1))
    per_step = t.accumulate * world
    steps = t.max_steps or max(1, round(t.epochs * schedule.per_epoch / per_step))
    schedule.size = steps * per_step
    evaluation = None
    if min(limits) > 0:
        evaluation = Schedule(rows("validation", min(limits)), t, shuffle=False)
        len(evaluation)
    if lm.scheme.hides:
        must_hide(schedule, lm)
    return Job(config, lm, schedule, evaluation, Collate(train, teacher=t.loss == "distill"), steps)


def must_hide(schedule: Schedule, lm: CompressedLM, batches: int = 3) -> None:
    """Raises UserError if the first micro-batches hide nothing: the scheme would be trained without compression."""
    for i in range(min(batches, len(schedule))):
        plan = _stacked([[schedule.rows.plan(k) for k in row] for row in schedule[i]])
        if not plan.hides(lm.scheme):
            raise UserError(
                f"micro-batch {i} hides no token from a later one: nothing would be compressed, and the adapter would learn nothing. "
                f"Does boundary '{type(schedule.rows.encoder.boundary).__name__.lower()}' ever end a segment of this data, "
                "and do the pins leave anything to forget?"
            )


def train(config: Config, lm: CompressedLM | None = None) -> Result:
    """Train, or go on with, the run of this configuration.

    Raises:
        UserError: see `prepare`; also a run_id that belongs to another configuration, or is being trained right now.
    """
    folder = run_folder(config)
    main = int(os.environ.get("RANK", 0)) == 0
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) if main else _nothing():
        if main:
            _same_run(folder, config)
        job = prepare(config, lm)
        return _run(job, folder, main)


def _run(job: Job, folder: Path, main: bool) -> Result:
    config, t, lm = job.config, job.config.training, job.lm
    done = newest(folder / "checkpoints")
    learner = Learner(lm, t.loss)
    clock, progress = Clock(t.max_minutes), Progress(job.steps, main)

    def journal(entry: dict[str, Any]) -> None:
        with (folder / "log.jsonl").open("a") as out:
            out.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")

    if main:
        left = job.schedule.rows.left
        print(
            f"{folder}: {gate.trainable(lm):,} trained parameters, scheme {lm.scheme.name}, gate {lm.gate}, {job.steps} steps"
            + (f", going on from {done.name}" if done else "")
            + (f"; left out so far: {left.too_long} too long, {left.no_label} without a target" if left.too_long or left.no_label else ""),
            file=sys.stderr,
        )
    trainer = CcmTrainer(
        learner, arguments(job, folder), job.schedule, job.evaluation, job.collate, t.patience, journal, callbacks=[clock, progress]
    )
    progress.trainer = trainer
    with clock.listening(), _fits(t):
        trainer.train(resume_from_checkpoint=str(done) if done else None)
    steps = trainer.state.global_step
    stopped = clock.stopped and steps < job.steps
    final = None
    if job.evaluation is not None and steps:
        if trainer.evaluated != steps:
            final = trainer.evaluate().get("eval_loss")
        else:
            final = next((e["eval_loss"] for e in reversed(trainer.state.log_history) if "eval_loss" in e), None)
    best = trainer.best
    if best is not None:
        put_back(learner, best[2])
    saved = None
    if main:
        saved = folders.save(lm, folder / "adapter", card_of(lm, config, folder / "adapter"))
        folders.write_json(folder / "result.json", {"steps": steps, "finished": not stopped, "best_loss": best and best[0], "best_step": best and best[1], "final_loss": final})  # fmt: skip
    progress.close()
    lm.eval()
    return Result(folder, saved, steps, not stopped, best and best[0], best and best[1], final)


def arguments(job: Job, folder: Path) -> TrainingArguments:
    """The Trainer's arguments."""
    t = job.config.training
    cpu = job.lm.device.type == "cpu" and not torch.cuda.is_available()
    warmup = round(t.warmup * job.steps)
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"), max_steps=job.steps, per_device_train_batch_size=1, gradient_accumulation_steps=t.accumulate,
        learning_rate=t.lr, lr_scheduler_type=t.schedule, warmup_steps=warmup, weight_decay=t.weight_decay, max_grad_norm=t.clip,
        optim="adamw_torch", seed=t.seed, data_seed=t.seed, use_cpu=cpu, bf16=False, fp16=False,
        logging_steps=t.log_steps, logging_nan_inf_filter=False, save_strategy="steps", save_steps=t.save_steps, save_total_limit=2,
        eval_strategy="steps" if job.evaluation is not None else "no", eval_steps=t.eval_steps,
        remove_unused_columns=False, prediction_loss_only=True, dataloader_num_workers=0, dataloader_pin_memory=not cpu,
        average_tokens_across_devices=True, ddp_find_unused_parameters=False, ddp_broadcast_buffers=False,
        report_to=trackers(job.config, folder), run_name=folder.name, disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip


def threads(wanted: int | None) -> None:
    """As many threads as this process has cores; several processes share them."""
    if wanted is None and "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(wanted or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _same_run(folder: Path, config: Config) -> None:
    """Raises UserError if the folder holds a run of another configuration; else remembers this one."""
    note = folder / "config.json"
    mine = json.loads(json.dumps(config.to_dict()))
    if note.is_file() and newest(folder / "checkpoints") is not None:
        theirs = Config.from_dict(json.loads(note.read_text()))
        a, b = _flat(significant(theirs)), _flat(significant(config))
        if changed := [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]:
            k = changed[0]
            raise UserError(
                f"run '{folder.name}' was started with {k}={a.get(k)}, got {k}={b.get(k)}; choose another run_id, "
                f"or delete '{folder}' to start again."
            )
    folders.write_json(note, mine)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"run '{folder.name}' is being trained by another process; wait for it, or choose another run_id.") from None


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _fits(training: Any) -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(e):
            raise
        size = f"training.batch_size={training.batch_size}" if training.batch_size else f"training.tokens_per_batch={training.tokens_per_batch}"
        raise UserError(
            f"a micro-batch does not fit the memory of this device ({str(e).splitlines()[0]}). Lower {size} "
            "(and raise training.accumulate to keep the batch), or set training.gradient_checkpointing=true."
        ) from e


def settings_of(config: Config) -> dict[str, Any]:
    return asdict(config)
