"""Run by benchmarks/validate_emit.py inside axolotl's environment after a job: the rows that it prepared for it."""

import sys
from pathlib import Path

from as_in_a_trial import main

if __name__ == "__main__":
    from datasets import load_from_disk

    here = Path(sys.argv[1])
    (prepared,) = {path.parent for path in here.glob("last_run_prepared/**/dataset_info.json")}
    sys.exit(main("axolotl", here, load_from_disk(str(prepared))))
