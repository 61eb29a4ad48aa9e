"""What a training needs, made and checked before it starts: model, rows, schedule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from context_memory import cutting
from context_memory.batches import Batch, Collate, Rows, Schedule
from context_memory.config import Config
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.loading import build
from context_memory.model import CompressedLM
from context_memory.text import Example

FEW = 50
"""Updates; the quickstart's has 90."""


@dataclass
class Job:
    """A training that can start."""

    config: Config
    lm: CompressedLM
    schedule: Schedule
    evaluation: Schedule | None
    collate: Collate
    steps: int
    unjudged: bool = False
    """The validation split has nothing to evaluate on, though it was asked for: the last parameters are kept instead of the best."""

    def remarks(self) -> list[str]:
        """What is not trained on, and why, as far as it is known by now; what else a person may not have meant."""
        left, wrong = self.schedule.rows.left, self.config.dropped("train")
        counts = {
            "rows with a wrong final answer dropped": wrong,
            "examples longer than training.max_tokens left out so far": left.too_long,
            "examples without a target after their first compression left out so far": left.no_label,
        }
        said = [f"{n:,} {what}" for what, n in counts.items() if n]
        if self.unjudged:
            said.append("no validation examples: never evaluated, the last step is kept (training.eval_samples=0 asks for that)")
        if self.config.training.max_steps is None and self.steps < FEW:
            said.append(f"{self.steps} updates are few for an adapter: training.epochs= or training.max_steps= gives more")
        return said


def prepare(config: Config, lm: CompressedLM | None = None, sampled: bool = False) -> Job:
    """Model, data and schedule.

    Args:
        sampled: the number of steps may be reckoned from a sample of the examples, so that not all of them are encoded.

    Raises:
        UserError: settings that contradict each other, or a batch in which the scheme hides nothing.
    """
    if not (scheme := config.make("scheme") if lm is None else lm.scheme).static:
        raise UserError(f"scheme '{scheme.name}' trains nothing: it chooses by the keys and has no mask for one pass. Only evaluate it.")
    threads(config.training.threads)
    must_be_a_set(config)
    lm = lm if lm is not None else build(config)
    if config.training.gradient_checkpointing:
        lm.base.activation_checkpointing_enable({"use_reentrant": False})
    t = config.training
    encoder = config.encoder(lm.tokenizer)
    must_be_writable(lm, encoder)
    supervise = "memory" if lm.gate == "comp" and not lm.joint else "all"
    longest = min(t.max_tokens, lm.max_positions)

    def rows(examples: Sequence[Example]) -> Rows:
        # Where hidden states decide, those of the frozen model do: the adapter is only being made.
        cut = partial(cutting.segments, lm, encoder, streamed=False)
        return Rows(examples, encoder, lm.scheme, lm.positions, supervise, longest, cut)

    train = rows(config.training_examples())
    limits = [n for n in (t.eval_samples, config.data["max_eval_samples"]) if n is not None]
    schedule = Schedule(train, t)
    world = int(os.environ.get("WORLD_SIZE", 1))
    per_step = t.accumulate * world
    steps = t.max_steps or max(1, round(t.epochs * (schedule.about() if sampled else schedule.per_epoch) / per_step))
    schedule.size = steps * per_step
    evaluation, unjudged = None, False
    if min(limits) > 0:
        evaluation = Schedule(rows(config.examples("validation", *limits)), t, shuffle=False)
        if not len(evaluation):
            evaluation, unjudged = None, True
    if lm.scheme.hides:
        must_hide(schedule, lm)
    must_fit(schedule, lm, config)
    return Job(config, lm, schedule, evaluation, Collate(train, teacher=t.loss == "distill"), steps, unjudged)


def must_be_a_set(config: Config) -> None:
    """Raises UserError unless `training.n_comp`, if it is given, are numbers of comp tokens up to those that the scheme has."""
    given, most = config.training.n_comp, config.scheme.get("n_comp", 0)
    if given and (min(given) < 1 or len(set(given)) < len(given) or max(given) != most):
        raise UserError(
            "training.n_comp must be different numbers of at least 1, and scheme.n_comp the largest of them; "
            f"got training.n_comp={given} and scheme.n_comp={most}."
        )
    if given and config.scheme.get("cache"):
        raise UserError(
            f"scheme.cache={config.scheme['cache']} is shared with as many comp tokens as there are, and training.n_comp={given} draws "
            "how many; use scheme.window."
        )


def must_be_writable(lm: CompressedLM, encoder: Encoder) -> None:
    """Raises UserError if a mark (`boundary=model`) looks like other tokens to the model: rows of the output embedding that no text ever
    trained are often the same, and of equally likely tokens it would always write another one."""
    if not encoder.mark:
        return
    rows = lm.base.get_output_embeddings().weight.detach()

    def like(token: int) -> int:
        row = rows[token].float()
        return sum(int(((part.float() - row).norm(dim=-1) <= 0.01 * row.norm()).sum()) for part in rows.split(1 << 14)) - 1

    for token in encoder.mark:
        if n := like(token):
            words = lm.tokenizer.get_added_vocab()
            usable = sorted(repr(t) for t, i in words.items() if i < len(rows) and i not in encoder.stops and not like(i))
            raise UserError(
                f"boundary 'model' would have the model write {lm.tokenizer.convert_ids_to_tokens(token)!r}, whose row of the output "
                f"embedding is that of {n:,} other tokens, so it cannot. Name one, boundary.token=; these have rows of their own: "
                f"{', '.join(usable[:8]) or 'none of the added tokens'}."
            )


def must_hide(schedule: Schedule, lm: CompressedLM, batches: int = 3) -> None:
    """Raises UserError if the first micro-batches hide nothing: the scheme would be trained without compression."""
    for i in range(min(batches, len(schedule))):
        if not schedule.rows.stacked(schedule[i]).hides(lm.scheme):
            raise UserError(
                f"micro-batch {i} hides no token from a later one: nothing would be compressed or learnt. Does boundary "
                f"'{type(schedule.rows.encoder.boundary).__name__.lower()}' ever end a segment of this data, and do the pins "
                "leave anything to forget?"
            )


def threads(wanted: int | None) -> None:
    """As many threads as this process has cores; several processes share them."""
    if wanted is None and "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(wanted or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def must_fit(schedule: Schedule, lm: CompressedLM, config: Config) -> None:
    """Raises UserError if a micro-batch has no hope of fitting: some systems kill a process rather than refuse it memory."""
    t, c = config.training, lm.base.config
    largest = [Batch(schedule[i].rows) for i in range(min(8, len(schedule)))]  # whatever number of comp tokens is drawn
    tokens = max(schedule.rows.stacked(batch).ids.numel() for batch in largest)
    # What a layer keeps for its backward pass, measured on llama: some 8 hidden and 3 intermediate activations a token.
    a_layer = (8 * c.hidden_size + 3 * lm.family.inner(c)) * lm.base.dtype.itemsize
    layers = c.num_hidden_layers
    saved = layers * c.hidden_size * lm.base.dtype.itemsize + a_layer if t.gradient_checkpointing else layers * a_layer
    need = tokens * saved
    if need > (room := available(lm.device)):
        raise UserError(
            f"a micro-batch of {tokens:,} tokens needs {need / 2**30:,.1f} GiB and this device has {room / 2**30:,.1f} left. "
            + lower(config)
        )


def available(device: torch.device) -> int:
    """Bytes that the device could still give."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def lower(config: Config) -> str:
    """What to do where memory is short."""
    t = config.training
    size = f"training.batch_size={t.batch_size}" if t.batch_size else f"training.tokens_per_batch={t.tokens_per_batch}"
    return f"Lower {size} (and raise training.accumulate to keep the batch), or set training.gradient_checkpointing=true."
