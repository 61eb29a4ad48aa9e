"""A file that is dropped into a folder of plug-ins is found by the laws: nothing but the file is said. (Families: `test_families.py`.)

Into a copy of the package, so that it is the folder itself that is looked into. What covers a dataset are the promises of `test_data.py`
and, as any plug-in, the settings of `test_catalogue.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from context_memory import plugins
from context_memory.config import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
HEAD = "from dataclasses import dataclass\n"
CLASS = "\n\n@dataclass(frozen=True)\nclass Dropped("
FILES = {
    "schemes": f"{HEAD}from context_memory.schemes.base import Scheme{CLASS}Scheme):\n    n_comp: int = 1\n\n"
    "    def sees(self, q, k):\n        return k.comp | (k.segment == q.segment)\n\n"
    "    def capacity(self, step):\n        return step * self.n_comp\n",
    "boundaries": f"{HEAD}from context_memory.boundaries.base import Boundary{CLASS}Boundary):\n    max_segment: int = 256\n\n"
    "    def ends(self, step):\n        return len(step.ids) == 5\n",
    "pins": f"{HEAD}from context_memory.pins.base import Pin{CLASS}Pin):\n    budget: int = 1\n\n"
    "    def chooses(self, piece):\n        return list(range(len(piece.ids)))\n",
    "data": f"{HEAD}from context_memory.data.base import Dataset{CLASS}Dataset):\n    seed: int = 0\n\n"
    "    def examples(self, split):\n        return []\n\n    def score(self, example, answer):\n        return {'correct': 0.0}\n",
}
LAWS = {
    "test_laws.py::test_one_pass_is_step_by_step": {"llama-Dropped(n_comp=1)-skip", "qwen3-Dropped(n_comp=2)-base"},
    "test_memory.py::test_memory_is_as_large_as_its_scheme_says_and_no_byte_more": {"llama-Dropped(n_comp=1)-torch.float32"},
    "test_reference.py::test_recursion_by_hand": {"llama-Dropped(n_comp=1)-skip"},
    "test_boundaries.py::test_offline_cuts_are_streaming_cuts_and_nothing_is_lost": {"0-dropped"},
    "test_boundaries.py::test_no_segment_is_longer_than_it_may_be": {"dropped"},
    "test_pins.py::test_every_rule_obeys": {"dropped-within", "dropped-alike", "dropped-offline_is_streaming", "dropped-refuses"},
    "test_data.py::test_target_scores_perfectly_and_a_wrong_answer_does_not": {"dropped"},
    "test_data.py::test_splits_are_disjoint_deterministic_and_scored": {"dropped"},
    "test_catalogue.py::test_every_setting_of_a_plugin_is_listed_and_explained": {f"{group}-dropped" for group in FOLDERS},
}
"""Test -> some of the cases that it must have."""


@pytest.mark.slow
def test_the_laws_find_a_file_that_is_dropped(tmp_path: Path) -> None:
    """The control: what is shipped has no such case."""
    assert not [folder for folder in FILES if "dropped" in plugins.keys(folder)]
    package, tests = tmp_path / "context_memory", sorted({f"tests/{law.partition('::')[0]}" for law in LAWS})
    shutil.copytree(ROOT / "src" / "context_memory", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder, source in FILES.items():
        (package / folder / "dropped.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "-o", f"pythonpath='{tmp_path}' tests"]
    done = subprocess.run([*command, *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [line.removesuffix("]").partition("[")[::2] for line in done.stdout.splitlines()]
    for law, wanted in LAWS.items():
        assert wanted <= {case for test, case in cases if test == f"tests/{law}"}, law
