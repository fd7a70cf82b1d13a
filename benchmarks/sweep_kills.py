"""Kills the supervisor and the trials of sweeps at random, and counts what is lost: nothing should be.

    unshare -p -f --mount-proc -r python benchmarks/sweep_kills.py [KILLS] [SEED]

Fast trials stand in for training (tests/planner/kills.py); the supervisor, the executor, the guards, the job folders
and the study are the real ones. Run it in a namespace of its own, as above: it kills only what it started.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.planner.kills import Count, torment

RANKS, RATES = 6, 6
A_SWEEP = 40
"""Kills of one sweep, before it may end in peace."""


def main() -> None:
    wanted, seed = (int(word) for word in (sys.argv[1:] + ["200", "1"][len(sys.argv) - 1 :])[:2])
    counts: list[Count] = []
    while sum(count.kills for count in counts) < wanted:
        with tempfile.TemporaryDirectory() as folder:
            counts.append(torment(Path(folder), ranks=RANKS, rates=RATES, most_kills=A_SWEEP, seed=seed + len(counts)))
        print(_line(counts[-1]), flush=True)
    print(f"kills {sum(c.kills for c in counts)}: {sum(c.of_supervisor for c in counts)} of the supervisor, "
          f"{sum(c.of_trials for c in counts)} of trials; configurations {sum(c.configurations for c in counts)}, with "
          f"a result {sum(c.results for c in counts)}, with more than one {sum(c.twice for c in counts)}, unfinished "
          f"{sum(c.unfinished for c in counts)}; orphans {sum(c.orphans for c in counts)}; two at one place "
          f"{sum(c.together for c in counts)}; damaged studies {sum(c.integrity != 'ok' for c in counts)}; "
          f"{sum(c.seconds for c in counts):.0f} s")  # fmt: skip


def _line(count: Count) -> str:
    return (
        f"{count.kills} kills ({count.of_supervisor} of the supervisor): {count.results} of {count.configurations} "
        f"configurations have a result ({count.failed} killed twice), {count.twice} two, {count.unfinished} none; "
        f"{count.orphans} orphans; study {count.integrity}; {count.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
