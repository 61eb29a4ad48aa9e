"""The seed's command line: `python run.py --model llama-3.1-8b-instruct --dataset gsm8k --train --run_id my_run_v1 --no_wandb`.

It is translated into `ccm`'s (`src/context_memory/seed.py` has the table) and run.
"""

import sys
from pathlib import Path

try:
    from context_memory import cli, seed
except ModuleNotFoundError as e:
    if e.name != "context_memory":
        raise
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
    from context_memory import cli, seed

if __name__ == "__main__":
    cli.main(lambda: seed.translate(sys.argv[1:]))
