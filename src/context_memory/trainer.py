"""The Hugging Face Trainer, told what is ours: batches with plans, a loss per label, checkpoints of what is trained.

Seam: transformers 5.23. The loss of every micro-batch is divided by the labels of the whole accumulated batch
(`num_items_in_batch`), so 4 x accumulate == 1 x 4. A checkpoint holds the trained parameters, the best ones so far, optimizer,
schedule and random states; its marker is written last, and one without a marker is never resumed from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from context_memory import loss as losses
from context_memory.atomic import write_json
from context_memory.batches import Collate, to_plan
from context_memory.job import Job
from context_memory.model import CompressedLM
from context_memory.plan import IGNORE
from context_memory.schemes.full import Full

MARKER, TRAINED, BEST, PROGRESS = "complete", "trained.safetensors", "best.safetensors", "progress.json"


class Learner(nn.Module):
    """What the Trainer trains: tensors in, loss out."""

    def __init__(self, lm: CompressedLM, loss: str = "ce") -> None:
        super().__init__()
        self.lm, self.loss = lm, loss

    def forward(self, num_items_in_batch: Tensor | int | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Sum of the losses of all labels, divided by `num_items_in_batch` (or by their number)."""
        plan = to_plan(batch)
        where = plan.labels != IGNORE
        rows, labels = self.lm.hidden(plan)[where], plan.labels[where]
        vocabulary = int(self.lm.base.config.vocab_size)
        if self.loss == "distill" and "teacher_ids" in batch:
            with torch.no_grad():
                whole = to_plan(batch, "teacher_")
                # Under `full`, whatever the scheme: a window would hide from the teacher too.
                teacher = self.lm.under(Full()).hidden(whole, adapter=False)[whole.labels != IGNORE]
            total = losses.distillation(rows, teacher, self.lm.logits, vocabulary)
        else:
            total = losses.cross_entropy(rows, labels, self.lm.logits, vocabulary)
        # A batch without a comp token still owes its embeddings a gradient: every rank must have all of them.
        total = total + sum(0.0 * p.sum() for p in self.lm.comp.parameters())
        return {"loss": total / (len(labels) if num_items_in_batch is None else num_items_in_batch)}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in trained(model).items()}


def put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the trained parameters.

    Raises:
        KeyError: other parameters than these were saved.
    """
    mine = trained(model)
    if set(mine) != set(weights):
        raise KeyError(f"the checkpoint trains other parameters: {sorted(set(mine) ^ set(weights))[:4]}")
    with torch.no_grad():
        for name, p in mine.items():
            p.copy_(weights[name])


class CcmTrainer(Trainer):
    """Our batches, our evaluation, our checkpoints."""

    control: Any

    def __init__(
        self, learner: Learner, args: TrainingArguments, job: Job, journal: Callable[[dict[str, Any]], None], **kwargs: Any
    ) -> None:
        data = {"train_dataset": job.schedule, "eval_dataset": job.evaluation, "data_collator": job.collate}
        super().__init__(model=learner, args=args, **data, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.evaluation, self.patience, self.journal = job.evaluation, job.config.training.patience, journal
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        """Lowest evaluation loss, its step, its parameters."""
        self.worse = 0
        """Evaluations since."""
        self.evaluated = -1
        """The step of the last evaluation,"""
        self.last_loss: float | None = None
        """and what it said."""
        self.raw_tokens = 0
        """Raw tokens trained on in this process since the last log."""
        self._since, self._aside = time.perf_counter(), 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.raw_tokens = self.raw_tokens + (inputs["kind"] == 0).sum()  # type: ignore[assignment]  # a tensor: not waited for
        return super().compute_loss(model, inputs, *args, **kwargs)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean cross-entropy per label of the evaluation examples, whatever is trained on, with `scheme.n_comp` comp tokens;
        keeps the best parameters."""
        if self.evaluation is None:
            return {}
        start = time.perf_counter()
        model, collate = self.model, Collate(self.evaluation.rows)
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        world, rank = self.args.world_size, self.args.process_index
        with torch.no_grad():
            for i in range(rank, len(self.evaluation), world):
                batch = self._prepare_inputs(collate([self.evaluation[i]]))
                count = (batch["labels"] != IGNORE).sum()
                total += torch.stack([model(**batch)["loss"].double() * count, count.double()])
        if world > 1:
            total = self.accelerator.reduce(total, "sum")
        model.train()
        mean = float(total[0] / total[1])
        self._judge(mean)
        metrics = {"eval_loss": mean, "eval_labels": int(total[1]), "eval_seconds": round(time.perf_counter() - start, 2)}
        self._aside += time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _judge(self, mean: float) -> None:
        if self.evaluated == self.state.global_step:
            return
        self.evaluated, self.last_loss = self.state.global_step, mean
        if not math.isnan(mean) and (self.best is None or mean < self.best[0]):  # nan is no loss, and nothing is below it
            self.best, self.worse = (mean, self.state.global_step, copied(self.model)), 0
        else:
            self.worse += 1
            if self.patience and self.worse >= self.patience:
                self.control.should_training_stop = self.control.should_save = True

    def last_evaluation(self) -> float | None:
        """The evaluation loss of the parameters as they are now."""
        if self.evaluation is not None and self.evaluated != self.state.global_step:
            self.evaluate()
        return self.last_loss

    # ---- logging ----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, with real raw tokens a second of all processes; and into the journal."""
        if "loss" in logs:
            now = time.perf_counter()
            seconds = now - self._since - self._aside
            logs["tokens_per_second"] = round(int(self.raw_tokens) * self.args.world_size / max(seconds, 1e-9), 1)
            self.raw_tokens, self._since, self._aside = 0, now, 0.0
        super().log(logs, start_time)
        if self.args.should_save:
            self.journal({"step": self.state.global_step, **logs})

    def forget_time(self) -> None:
        """Start the clock of tokens a second now."""
        self.raw_tokens, self._since, self._aside = 0, time.perf_counter(), 0.0

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        save_file(copied(self.model), folder / TRAINED)
        if self.best is not None:
            save_file(self.best[2], folder / BEST)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        start = time.perf_counter()
        super()._save_checkpoint(model, trial)
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            best = None if self.best is None else {"loss": self.best[0], "step": self.best[1]}
            write_json(folder / PROGRESS, {"best": best, "worse": self.worse, "evaluated": self.evaluated, "loss": self.last_loss})
            (folder / MARKER).touch()
        self._aside += time.perf_counter() - start

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        put_back(self.model, load_file(folder / TRAINED))
        progress = json.loads((folder / PROGRESS).read_text())
        self.worse, self.evaluated, self.last_loss = progress["worse"], progress["evaluated"], progress.get("loss")
        if progress["best"] is not None:
            self.best = (progress["best"]["loss"], progress["best"]["step"], load_file(folder / BEST))


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    complete = [p.parent for p in folder.glob(f"checkpoint-*/{MARKER}")]
    return max(complete, key=lambda p: int(p.name.rsplit("-", 1)[-1]), default=None)
