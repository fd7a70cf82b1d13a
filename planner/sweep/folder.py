"""The folder of a sweep: one sweep's and no other's, which it says of itself, with the data in it that were split."""

import json
from dataclasses import replace
from pathlib import Path

from estimators.errors import BadInput
from planner.sweep.address import Address
from planner.sweep.ledger import TRIALS, Work
from runners.examples import split
from runners.job import write_atomically

LOCK, MARK, DATA = "lock", "sweep.json", "data"
HELD_OUT_SHARE = 0.1
STUDY, STORAGE = "study", "storage"


def refuse_another(folder: Path, study: str, address: Address) -> None:
    """Looks, and writes nothing.

    Raises:
        BadInput: the folder cannot be used, or holds another sweep or something that is none.
    """
    try:
        if not folder.exists() or all(_is_of_a_start(path.name, address) for path in folder.iterdir()):
            return
        mark = json.loads((folder / MARK).read_bytes())
    except FileNotFoundError:
        raise BadInput(f"--folder {folder} holds something that is no sweep's; name another, or an empty one") from None
    except OSError as error:
        raise BadInput(f"--folder {folder}: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"--folder {folder}: {MARK} in it is not what a sweep writes") from None
    before, now = mark if isinstance(mark, dict) else {}, _mark(folder, study, address)
    if before.get(STUDY) != study:
        raise BadInput(f"--folder {folder} holds another sweep ({before.get(STUDY)}), and this one is {study}: the "
                       "options that it was begun with differ; name another folder")  # fmt: skip
    if before.get(STORAGE) != now[STORAGE]:
        raise BadInput(f"--folder {folder} holds this sweep as recorded in {before.get(STORAGE)}, not in "
                       f"{now[STORAGE]}; name that --storage, or another folder")  # fmt: skip
    if address.path is not None and not address.path.exists() and (folder / TRIALS).exists():
        raise BadInput(f"--folder {folder} has the trials of a study that is gone ({address.shown}); name another "
                       "folder, or bring it back")  # fmt: skip


def _is_of_a_start(name: str, address: Address) -> bool:
    """Whether a sweep writes it before it says whose the folder is: a kill, or data that are none, may leave it so."""
    database = address.path.name if address.path is not None else LOCK
    return name in (LOCK, DATA) or name.startswith((database, f".{MARK}."))


def claim(folder: Path, study: str, address: Address) -> None:
    """Says in the folder whose it is, once its lock is held.

    Raises:
        BadInput: it is another's, or cannot be written.
    """
    refuse_another(folder, study, address)
    if (folder / MARK).exists():
        return
    try:
        write_atomically(folder / MARK, _mark(folder, study, address))
    except OSError as error:
        raise BadInput(f"--folder {folder}: {error.strerror}") from None


def make(folder: Path) -> None:
    """
    Raises:
        BadInput: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--folder {folder}: {error.strerror}") from None


def _mark(folder: Path, study: str, address: Address) -> dict[str, str]:
    """A file in the folder itself is known by its name, so that the folder may move."""
    path = address.path
    own = path is not None and path.parent.absolute() == folder.absolute()
    return {STUDY: study, STORAGE: path.name if own and path is not None else address.shown}


def with_held_out(work: Work, folder: Path) -> Work:
    """With a share of the data held out, where no file of its own is given; the sweep's lock is held."""
    if work.data is None or work.training.held_out is not None:
        return work
    parts = split(Path(work.data), HELD_OUT_SHARE, work.terms.seed, folder / DATA)
    training = replace(work.training, held_out=str(parts.held_out.absolute()))
    return replace(work, data=str(parts.train.absolute()), training=training)
