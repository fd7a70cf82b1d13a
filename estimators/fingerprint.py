"""Which machine a measurement was made on: enough to know it again, and nothing that names its owner."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The host and its GPUs as a measurement remembers them; names and serial numbers only as hashes."""

    host: str
    """Hash of the host's name. A container has a new one each time it starts: the GPUs tell it then."""
    processor: str
    """The CPU's model name: it issues the kernels."""
    cores: int | None
    gpus: tuple[str, ...]
    """Catalogue names, one a GPU."""
    gpu_hashes: tuple[str, ...]
    """Hashes of the UUIDs, in the order of `gpus`; empty where the driver showed none."""
    driver: str | None

    def is_same_as(self, other: "Machine") -> bool:
        """Whether both are one machine: the same kind of processor beside a GPU that both know, or under one name."""
        if self.processor != other.processor:
            return False
        if self.gpu_hashes and other.gpu_hashes:
            return not set(self.gpu_hashes).isdisjoint(other.gpu_hashes)
        return self.host == other.host and set(self.gpus) == set(other.gpus)


def hashed(text: str) -> str:
    """A text that can be recognised, not read."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_DIGITS // 2, person=b"finetune-plan").hexdigest()


def machine_of(
    hostname: str,
    processor: str,
    cores: int | None,
    gpus: Iterable[tuple[str, str | None]],
    driver: str | None,
) -> Machine:
    """The machine of that name, with (catalogue name, UUID) of each GPU."""
    pairs = tuple(gpus)
    return Machine(
        host=hashed(hostname),
        processor=" ".join(processor.split()),
        cores=cores,
        gpus=tuple(name for name, _ in pairs),
        gpu_hashes=tuple(hashed(uuid) for _, uuid in pairs if uuid),
        driver=driver,
    )
