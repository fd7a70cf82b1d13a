"""What the supervisor of a sweep costs between trials, over trials that take a moment: median of several sweeps.

python benchmarks/sweep_overhead.py [TRIALS] [SWEEPS]
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planner.sweep.space import Space
from tests.planner.sweeps import order, sweep


def main() -> None:
    trials, sweeps = (int(word) for word in (sys.argv[1:] + ["20", "3"][len(sys.argv) - 1 :])[:2])
    gaps, totals = [], []
    for _ in range(sweeps):
        with tempfile.TemporaryDirectory() as folder:
            ranks = tuple(range(1, trials + 1))
            done = sweep(order(Path(folder), space=Space(ranks=ranks), repeats=0))
        gaps.append(done.own_seconds / (trials - 1))
        totals.append((done.seconds - sum(trial.seconds for trial in done.trials)) / trials)
    print(f"{sweeps} sweeps of {trials} trials: a place waits {statistics.median(gaps):.3f} s between two trials "
          f"(best {min(gaps):.3f}); all that is not a trial's own time, the start included: "
          f"{statistics.median(totals):.3f} s a trial (best {min(totals):.3f}), which is "
          f"{statistics.median(totals) / 60:.2%} of one-minute trials")  # fmt: skip


if __name__ == "__main__":
    main()
