"""The device profiles of this user's machines: one small file for each kind of GPU in each, beside the store."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from estimators.device_profile import DeviceProfile, profile_document, profile_from_document
from estimators.errors import BadInput, PlanError
from estimators.fingerprint import Machine
from runners.job import write_atomically
from runners.store import default_path

LARGEST_BYTES = 1_000_000
KEY_BYTES = 8
Skipped = Callable[[str], None]


class CannotKeepError(PlanError):
    """A profile could not be written; the message names the file and the cause."""


def folder_of(store: Path | None = None) -> Path:
    """Where the profiles lie: beside the store that is in use."""
    return (store or default_path()).absolute().parent / "calibrations"


def keep(profile: DeviceProfile, store: Path | None = None) -> Path:
    """Writes a profile, in place of the one that the same machine had for the same card.

    Raises:
        CannotKeepError: the disk is full, or the folder cannot be written; the profile before it is as it was.
        BadInput: a figure of it is none, and nobody could read it again.
    """
    document = profile_document(profile)
    profile_from_document(document)
    folder = folder_of(store)
    path = folder / f"{profile.gpu}-{_key(profile.machine)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, document)
    except OSError as error:
        raise CannotKeepError(f"cannot keep the device profile {path}: {error.strerror or error}") from None
    return path


def find(
    gpu: str, machine: Machine, store: Path | None = None, skipped: Skipped = lambda line: None
) -> DeviceProfile | None:
    """The newest profile of that card in that machine; `skipped` is told in a line of each that cannot be read."""
    mine = [one for one in _profiles(folder_of(store), gpu, skipped) if one.machine.is_same_as(machine)]
    return max(mine, key=lambda one: one.seconds_since_epoch, default=None)


def read(path: Path) -> DeviceProfile:
    """
    Raises:
        BadInput: there is none, or it is damaged; the message names the file.
    """
    try:
        with path.open("rb") as file:
            return profile_from_document(json.loads(file.read(LARGEST_BYTES)))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (BadInput, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: {str(error)[:200]}") from None


def _profiles(folder: Path, gpu: str, skipped: Skipped) -> Iterator[DeviceProfile]:
    """Those of that kind of card, by their files' names and by what they say themselves."""
    name = re.compile(f"{re.escape(gpu)}-[0-9a-f]{{{2 * KEY_BYTES}}}\\.json")  # rtx-4070 is no rtx-4070-ti
    for path in sorted(path for path in folder.glob("*.json") if name.fullmatch(path.name)):
        try:
            profile = read(path)
            if profile.gpu != gpu:
                raise BadInput(f"{path}: is of {profile.gpu[:60]!a}")
            yield profile
        except BadInput as error:
            skipped(f"the device profile is not used: {error}")


def _key(machine: Machine) -> str:
    """The same for the same machine: its GPUs tell it, or its name where they have none."""
    essence = [machine.processor, *(sorted(machine.gpu_hashes) or [machine.host])]
    return hashlib.blake2b("\n".join(essence).encode(), digest_size=KEY_BYTES).hexdigest()
