"""What a training says while it runs, when it must stop, and whom else it tells."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.nn.utils import get_total_norm
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from context_memory.config import Config
from context_memory.errors import UserError


class Clock(TrainerCallback):
    """Stops a training cleanly, with a checkpoint, when its time is up or a signal asks for it."""

    def __init__(self, minutes: float | None) -> None:
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.stopped = False
        self.asked = False
        """By a signal: whoever sent it waits."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        late = self.until is not None and time.monotonic() > self.until
        # All processes stop after the same step, or the others would wait for ever for the one that has left.
        if any(gather_object([late or self.stopped])) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C stop after the step that is running; a second Ctrl-C stops at once."""

        def stop(number: int, frame: Any) -> None:
            if self.stopped and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped = self.asked = True
            print("stopping after this step; Ctrl-C stops at once", file=sys.stderr, flush=True)

        try:
            before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals are somebody else's business
            yield
            return
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


class Finite(TrainerCallback):
    """Ends a training at the first gradient that is no number, before it reaches the weights and a checkpoint keeps them."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not bool(norm.isfinite()):
            raise UserError(
                f"the gradient of step {state.global_step + 1} is {float(norm)}: the training ends here, before the weights are lost; "
                "checkpoints are from before. Lower training.lr, or train in model.dtype=float32; the same command goes on from the last."
            )


class Progress(TrainerCallback):
    """A bar on a terminal, a line a log entry elsewhere: loss, real tokens a second, time left."""

    def __init__(self, steps: int, main: bool) -> None:
        self.steps, self.main = steps, main
        self.bar: Any = None
        self.trainer: Any = None
        self.first, self.start = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for other in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(other)
        self.trainer.forget_time()
        self.first, self.start = state.global_step, time.monotonic()
        if self.main and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not self.main or not logs:
            return
        if "loss" in logs:
            done = state.global_step - self.first
            left = (time.monotonic() - self.start) / max(done, 1) * (self.steps - state.global_step)
            text = {"loss": f"{logs['loss']:.4f}", "tokens/s": f"{logs.get('tokens_per_second', 0):.0f}"}
            if self.bar is not None:
                self.bar.set_postfix(text)
            else:
                lr = logs.get("learning_rate", 0.0)
                speed = f"{text['tokens/s']} tokens/s  {_span(left)} left"
                self._say(f"step {state.global_step}/{self.steps}  loss {text['loss']}  lr {lr:.1e}  {speed}")
        elif "eval_loss" in logs:
            self._say(f"step {state.global_step}/{self.steps}  evaluation loss {logs['eval_loss']:.4f}")

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _span(seconds: float) -> str:
    m, s = divmod(int(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


def trackers(config: Config, folder: Path) -> list[str]:
    """The Trainer's `report_to`. Weights & Biases only where a key is configured; a run goes on under its run_id.

    Raises:
        UserError: a tracker that does not exist or is not installed.
    """
    t = config.training
    names = [n.strip() for n in t.report_to.split(",") if n.strip() and n.strip() != "none"]
    for name in names:
        if name not in ("tensorboard", "trackio"):
            raise UserError(f"training.report_to must be none, tensorboard or trackio (or both, with a comma), got '{name}'.")
        if find_spec(name) is None:
            raise UserError(f"training.report_to={name} needs the package {name}: pip install 'context-memory[tracking]'.")
    if "tensorboard" in names:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    if "trackio" in names:
        os.environ.setdefault("TRACKIO_PROJECT", "context-memory")
    if t.wandb and int(os.environ.get("RANK", 0)) == 0:
        if reason := _no_wandb():
            print(f"wandb: {reason}; training goes on without it (--no_wandb leaves out this line).", file=sys.stderr)
        else:
            os.environ |= {
                "WANDB_RUN_ID": f"{folder.parent.name}-{folder.name}",
                "WANDB_RESUME": "allow",
                "WANDB_DIR": str(folder),
            }
            os.environ.setdefault("WANDB_PROJECT", "context-memory")
            names.append("wandb")
    return names


def _no_wandb() -> str | None:
    """Why Weights & Biases cannot be used, or None."""
    if find_spec("wandb") is None:
        return "not installed"
    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or os.environ.get("WANDB_API_KEY"):
        return None
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if netrc.is_file() and "wandb.ai" in netrc.read_text(errors="ignore"):
        return None
    return "no key is configured"
