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
from context_memory.defaults import DataExtras, EvaluationConfig, GenerationConfig, ModelConfig, TrainingConfig
from context_memory.encode import Encoder
from context_memory.errors import EmptySplit, UserError
from context_memory.series import Series
from context_memory.text import Example

FOLDERS = {"data": "data", "scheme": "schemes", "boundary": "boundaries", "pins": "pins"}
"""Group of the configuration -> folder of plug-ins."""
SPLITS = ("train", "validation", "test")
"""What every dataset has; `all` stands for the three."""


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
    """Name of the run and of its folder; the same name goes on."""
    output: str = "result"
    """Folder of all runs."""
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
        """The first examples of a split (`all`: of every split, one after the other): that share of them, no more than any of the limits.

        Raises:
            UserError: the dataset has no such split, or something is wrong with its source.
        """
        data = self.dataset()
        try:
            found = _every(data) if split == "all" else data.examples(split)
        except (ValueError, ImportError, OSError) as e:
            raise UserError(f"data={self.data['name']}: {e}") from e
        if not found and split != "validation" and (wrong := self.dropped(split)):
            raise UserError(
                f"data={self.data['name']}: none of the {wrong} rows of the {split} split is left, because the final answer of each is "
                "wrong or missing; an annotated solution must end in the right number, as in '#### 18'."
            )
        return found[: min([max(1, int(len(found) * ratio)), *(n for n in limits if n is not None)])]

    def dropped(self, split: str) -> int:
        """How many rows of the source are not among the examples of a split, because they are wrong."""
        data = self.dataset()
        return sum(data.dropped(part) for part in (SPLITS if split == "all" else (split,)))

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


def _every(data: Dataset) -> list[Example]:
    """The examples of every split, one split after the other. Of a small file, which is carved, some splits may have none."""
    found: list[Example] = []
    empty: EmptySplit | None = None
    for split in SPLITS:
        try:
            found += data.examples(split)
        except EmptySplit as none:
            empty = none
    if not found and empty is not None:
        raise empty
    return found


def _whole(group: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of what is not said: a run that began before a setting was there is gone on with, if that has its default."""
    extras = asdict(DataExtras()) if group == "data" else {}
    try:
        usual = plugins.usual(plugins.find(FOLDERS[group], settings["name"]))
    except LookupError:  # who makes the plug-in says that there is none
        usual = {}
    return {**extras, **usual, **settings}


def _make(group: str, folder: str, name: str, settings: Mapping[str, Any]) -> Any:
    try:
        return plugins.make(folder, name, **settings)
    except (ValueError, TypeError, LookupError) as e:
        raise UserError(f"{group}={name}: {e}") from e
