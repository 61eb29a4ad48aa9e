"""The configuration: typed data, overridden with `key=value`, saved with the weights.

Groups `data`, `scheme`, `boundary` and `pins` are the folders of plug-ins: a setting of a group is a field of the plug-in's
dataclass, so a new file is a new choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from context_memory import plugins
from context_memory.data.base import Dataset
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.models import EMBEDDED
from context_memory.series import Series
from context_memory.text import Example

FOLDERS = {"data": "data", "scheme": "schemes", "boundary": "boundaries", "pins": "pins"}
"""Group of the configuration -> folder of plug-ins."""


@dataclass
class ModelConfig:
    name: str = EMBEDDED
    """Known name, hub id, folder or .gguf file."""
    adapter: str | None = None
    """An adapter folder: a task adapter is merged into the model first, a compression adapter is loaded."""
    start: str | None = None
    """A compression adapter whose weights a new one begins with, whatever task adapter it was trained on."""
    joint: bool = False
    """Train a task adapter and the compression adapter at once, under compression: the model learns to write for its memory. Both are
    saved, `task` beside `adapter`. `model.adapter` is then a task adapter to go on with."""
    dtype: str = "auto"
    """`bfloat16`, `float32` or `float16`; `auto`: bfloat16 where the device multiplies it natively, else float32."""
    attn_implementation: str = "sdpa"
    gate: str = "auto"
    """`comp`: LoRA at comp tokens alone. `all`: an ordinary LoRA. `auto`: comp for schemes that have comp tokens."""
    positions: str = "skip"
    targets: str = "auto"
    """LoRA on `attention`, on `all` linear layers, on names (`q_proj,v_proj`); `auto`: all for scheme=full, else attention."""
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    chat: bool = True
    """Put text into the chat roles of the tokenizer, if it has any."""
    prompt: str = "keep"
    """`keep`: the question is read and forgotten with the first step unless pinned. `compress`: it is cut at
    boundaries and compressed like everything else."""


@dataclass
class TrainingConfig:
    max_steps: int | None = None
    """Updates. Not given: as many as `epochs` takes."""
    epochs: float = 1.0
    max_minutes: float | None = None
    """Stop cleanly after this time and save; the same command goes on from there."""
    tokens_per_batch: int = 4096
    """Room of a micro-batch, padding and comp tokens included."""
    batch_size: int | None = None
    """Rows of a micro-batch, however long; in the place of `tokens_per_batch`."""
    accumulate: int = 1
    """Micro-batches an update."""
    max_tokens: int = 1024
    """Longer examples are left out, and counted."""
    packing: bool = False
    """Lay several examples side by side in a row of `tokens_per_row`."""
    tokens_per_row: int = 512
    lr: float = 3e-4
    warmup: float = 0.03
    """Share of the steps."""
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: str = "ce"
    """`ce`: cross-entropy on the targets (a little better at equal updates, docs/log.md). `distill`: KL to the same model with
    its full context."""
    gradient_checkpointing: bool = False
    n_comp: list[int] | None = None
    """Train one adapter for several numbers of comp tokens: each micro-batch draws one of these, as in `[1,2,4]`. The largest must be
    `scheme.n_comp`, which evaluations during training use. Evaluate it with any: `--sweep scheme.n_comp=1,2,4`."""
    seed: int = 42
    eval_steps: int = 50
    eval_samples: int = 128
    patience: int = 3
    """Evaluations without a new best before training stops; 0: never."""
    save_steps: int = 50
    save_dtype: str = "float32"
    """Of the LoRA in the finished adapter's file; `float16` halves it. Checkpoints are exact."""
    log_steps: int = 5
    wandb: bool = True
    """Weights & Biases, where a key is configured."""
    report_to: str = "none"
    """Further trackers: `tensorboard`, `trackio`, or both with a comma."""
    threads: int | None = None
    profile: bool = False
    """Write a trace of steps 2 to 4 and a table of the most expensive operators into the run's folder (`profiling.py`)."""


@dataclass
class GenerationConfig:
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class EvaluationConfig:
    split: str = "test"
    max_samples: int | None = None
    batch_size: int = 8
    generate: bool = True
    """Answer the questions; false: likelihoods alone."""
    likelihood: bool = True
    """The negative log-likelihood of the targets; false: answers alone, in about half the time."""
    choose: bool = True
    """Where a dataset has options (`icl`, `personal`, `fact`), the likeliest is the answer; false: it is written."""
    depths: list[int] | None = None
    """Ask every question with the last t segments of its context in memory, for each of these t, as in `[1,2,4,8]`: the same
    questions for all."""
    recall: bool = False
    """Also ask, after each answer, for the numbers of its earlier lines (`recall.py`): the score `recall`, and `recall` in every line of
    predictions.jsonl."""
    profile: bool = False
    """Write a trace of decode steps 3 to 13 of the first batch that is run and a table of the most expensive operators into each
    row's folder (`profiling.py`). The answers are the same; that batch takes longer."""


@dataclass
class DataExtras:
    """Settings that every dataset has beside its own."""

    train_ratio: float = 1.0
    """Share of the training examples that is used."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    problems: int = 1
    """So many consecutive problems in one sequence; the limits above count sequences."""


@dataclass
class Config:
    """The whole of it. Groups of plug-ins are mappings, `{"name": "concat", "n_comp": 2, ...}`; pins map name -> settings."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, Any] = field(default_factory=dict)
    scheme: dict[str, Any] = field(default_factory=dict)
    boundary: dict[str, Any] = field(default_factory=dict)
    pins: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run_id: str | None = None
    output: str = "result"
    called: str | None = None
    """What the data are called in the folder of a run, `<output>/<called>/<run_id>`; the dataset's own name if not given."""

    def home(self) -> Path:
        """Where the runs on these data are."""
        return Path(self.output) / (self.called or self.data["name"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; keys of a later version are left out, those that an earlier one lacked have their defaults."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            if f.name not in tree:
                continue
            value = tree[f.name]
            kind = PLAIN.get(f.name)
            if kind is not None:
                value = kind(**{k: v for k, v in value.items() if k in {x.name for x in dataclasses.fields(kind)}})
            if f.name in ("run_id", "output", "called") and value is not None:
                value = str(value)
            out[f.name] = _whole(f.name, value) if f.name in FOLDERS and f.name != "pins" and value else value
        return cls(**out)

    # ---- the plug-ins -----------------------------------------------------------------------------------------------

    def make(self, group: str) -> Any:
        """The chosen plug-in of a group, made with its settings; for `pins` a list of them.

        Raises:
            UserError: the plug-in refuses its settings.
        """
        if group == "pins":
            home = self.model.adapter
            return [_make("pins", "pins", name, plugins.beside(home, "pins", name, settings)) for name, settings in self.pins.items()]
        settings = dict(getattr(self, group))
        name = settings.pop("name")
        settings = plugins.beside(self.model.adapter, FOLDERS[group], name, settings)
        own = {f.name for f in dataclasses.fields(plugins.find(FOLDERS[group], name))}
        return _make(group, FOLDERS[group], name, {k: v for k, v in settings.items() if k in own})

    def encoder(self, tokenizer: Any) -> Encoder:
        """How texts become segments: boundary, pins, roles and what is done with the question."""
        try:
            return Encoder(tokenizer, self.make("boundary"), self.make("pins"), chat=self.model.chat, prompt=self.model.prompt)
        except ValueError as e:  # a mark that the tokenizer has not
            raise UserError(str(e)) from e

    def dataset(self) -> Dataset:
        """Where examples come from and who scores them: the chosen plug-in, `data.problems` of its problems in one."""
        single: Dataset = self.make("data")
        problems = self.data.get("problems", 1)
        return single if problems == 1 else Series(single, problems)

    def examples(self, split: str, *limits: int | None, ratio: float = 1.0) -> Sequence[Example]:
        """The first examples of a split: that share of them, and no more than any of the limits.

        Raises:
            UserError: the dataset has no such split, or something is wrong with its source.
        """
        try:
            found = self.dataset().examples(split)
        except (ValueError, ImportError, OSError) as e:
            raise UserError(f"data={self.data['name']}: {e}") from e
        return found[: min([max(1, int(len(found) * ratio)), *(n for n in limits if n is not None)])]

    def training_examples(self) -> Sequence[Example]:
        """The train split, as `data.train_ratio` and `data.max_train_samples` have it."""
        return self.examples("train", self.data["max_train_samples"], ratio=self.data["train_ratio"])

    def gate(self) -> str:
        """`model.gate` with `auto` decided."""
        if self.model.gate != "auto":
            return self.model.gate
        return "comp" if self.scheme.get("n_comp") else "all"


PLAIN: dict[str, type] = {
    "model": ModelConfig,
    "training": TrainingConfig,
    "generation": GenerationConfig,
    "evaluation": EvaluationConfig,
}


def _whole(group: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of what is not said: a run that began before a setting was there is gone on with, if that has its default."""
    extras = asdict(DataExtras()) if group == "data" else {}
    try:
        own = dataclasses.fields(plugins.find(FOLDERS[group], settings["name"]))
    except LookupError:  # who makes the plug-in says that there is none
        own = ()
    usual = {f.name: f.default for f in own if f.default is not dataclasses.MISSING}
    usual |= {f.name: f.default_factory() for f in own if f.default_factory is not dataclasses.MISSING}
    return {**extras, **usual, **settings}


def _make(group: str, folder: str, name: str, settings: Mapping[str, Any]) -> Any:
    try:
        return plugins.make(folder, name, **settings)
    except (ValueError, TypeError, LookupError) as e:
        raise UserError(f"{group}={name}: {e}") from e
