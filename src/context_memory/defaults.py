"""The plain settings with their defaults, a class a group; what plug-ins set stands in their own files."""

from __future__ import annotations

from dataclasses import dataclass

from context_memory.models import EMBEDDED


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
    """Of transformers; the same results but for rounding."""
    gate: str = "auto"
    """`comp`: LoRA at comp tokens alone. `all`: an ordinary LoRA. `auto`: comp for schemes that have comp tokens."""
    positions: str = "skip"
    """`skip`: comp tokens take no position of the text's. `base`: every token counts."""
    targets: str = "auto"
    """LoRA on `attention`, on `all` linear layers, on names (`q_proj,v_proj`); `auto`: all for scheme=full, else attention."""
    lora_r: int = 8
    """Rank."""
    lora_alpha: int = 16
    """LoRA is scaled by this over the rank."""
    lora_dropout: float = 0.0
    """Of LoRA, while training."""
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
    """Passes over the training examples, where `max_steps` does not say."""
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
    """With `packing`: room of a row."""
    lr: float = 3e-4
    """The highest learning rate."""
    warmup: float = 0.03
    """Share of the steps."""
    schedule: str = "cosine"
    """Of the learning rate after the warmup."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip: float = 1.0
    """Norm of the gradients that is not exceeded; 0: any."""
    loss: str = "ce"
    """`ce`: cross-entropy on the targets (a little better at equal updates, docs/log.md). `distill`: KL to the same model with
    its full context."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    n_comp: list[int] | None = None
    """Train one adapter for several numbers of comp tokens: each micro-batch draws one of these, as in `[1,2,4]`. The largest must be
    `scheme.n_comp`, which evaluations during training use. Evaluate it with any: `--sweep scheme.n_comp=1,2,4`."""
    seed: int = 42
    """Of first weights, order and dropout."""
    eval_steps: int = 50
    """Updates from one evaluation to the next."""
    eval_samples: int = 128
    """Examples of the validation split that these use; 0: none is made."""
    patience: int = 3
    """Evaluations without a new best before training stops; 0: never."""
    save_steps: int = 50
    """Updates from one checkpoint to the next."""
    save_dtype: str = "float32"
    """Of the LoRA in the finished adapter's file; `float16` halves it. Checkpoints are exact."""
    log_steps: int = 5
    """Updates from one line of the log to the next."""
    wandb: bool = True
    """Weights & Biases, where a key is configured."""
    report_to: str = "none"
    """Further trackers: `tensorboard`, `trackio`, or both with a comma."""
    threads: int | None = None
    """Of the processor, for torch; not given: its own choice."""
    profile: bool = False
    """Write a trace of steps 2 to 4 and a table of the most expensive operators into the run's folder (`profiling.py`)."""


@dataclass
class GenerationConfig:
    max_new_tokens: int = 256
    """Where an answer is cut off."""
    temperature: float = 0.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share together."""
    seed: int = 0
    """Of the draws."""


@dataclass
class EvaluationConfig:
    split: str = "test"
    """Which examples; `all`: of every split, as for a single file of questions that no training has seen."""
    max_samples: int | None = None
    """The first so many of the split; not given: all."""
    batch_size: int = 8
    """Rows at once."""
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
    """The first so many examples to train on."""
    max_eval_samples: int | None = None
    """The first so many examples to validate or test with."""
    problems: int = 1
    """So many consecutive problems in one sequence; the limits above count sequences."""
