"""One GPU, or several that each hold everything and average gradients (DistributedDataParallel).

Source: torch 2.11 nn/parallel/distributed.py: without `gradient_as_bucket_view`, the buckets are a second copy of every
gradient, kept from the first step on, and are all-reduced once a step (accelerate skips the others when accumulating).
"""

from dataclasses import dataclass

from estimators.strategies.axes import Exchange, Job, Needs, Phase, Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated:
    """Every rank holds everything."""

    name: str
    needs: Needs = Needs()

    def resident(self, job: Job, phase: Phase) -> Resident:
        trained = job.trainable_parameters * job.trainable_bytes_each
        # Accumulated gradients are there before a backward pass; else it makes them one after the other.
        kept = trained if job.accumulates and phase in ("loss", "backward") else 0
        made = trained if phase == "step" or (phase == "backward" and not kept) else 0
        return Resident(
            weights=job.weights_bytes,
            adapter=trained if job.adapter else 0,
            gradients=made,
            gradient_buffers=kept,
            optimizer=job.state_bytes if phase != "loaded" else 0,
            workspace=job.step_temporary_bytes if phase == "step" else 0,
            communication=trained if self.name == "ddp" and phase != "loaded" else 0,
        )

    def host_bytes(self, job: Job) -> int:
        return 0

    def disk_bytes(self, job: Job) -> int:
        return 0

    def exchange(self, job: Job) -> Exchange:
        if job.devices == 1:
            return Exchange()
        reduced = float(job.trainable_parameters * job.trainable_bytes_each)
        return Exchange(reduced=reduced, calls=1 + int(reduced) // (job.buckets.ddp_mib << 20))
