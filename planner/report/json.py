"""Plans, prices and what was found, as JSON documents: bytes and counts as integers, `schema_version` first."""

import json
import math
from typing import Any

from estimators.document import to_document
from estimators.hardware import Cluster, Device, Gpu, Host, Link
from estimators.model import ModelSpec
from estimators.price import GpuShare, Interval, Price
from estimators.traced import Traced
from planner.goal import Goal
from planner.plan import Alternative, Candidate, Matrix, MatrixRow, Plan
from planner.report.terminal import job_seconds

SCHEMA_VERSION = 1
Document = dict[str, Any]


def dump(document: Document, *, indent: int | None = 1) -> str:
    """JSON text, in ASCII, without Infinity or NaN."""
    return json.dumps(document, indent=indent, allow_nan=False)


def _goal(goal: Goal) -> Document:
    """What the user asked for; what the machine taught is not theirs."""
    return {name: value for name, value in fields(goal).items() if name != "calibration"}


def plan_document(plan: Plan, versions: dict[str, str]) -> Document:
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": plan.verdict,
        "evidence": plan.evidence,
        "confirmed": plan.confirmed,
        "doubt": None if plan.confirmed or plan.chosen is None else plan.doubt,
        "notes": list(plan.notes),
        "goal": _goal(plan.goal),
        "model": model_document(plan.model),
        "cluster": cluster_document(plan.cluster),
        "chosen": _candidate(plan, plan.chosen, versions) if plan.chosen else None,
        "alternatives": [_alternative(plan, other, versions) for other in plan.alternatives],
        "refusals": [fields(refusal) for refusal in plan.refusals],
        "rule": fields(plan.rule) if plan.rule else None,
        "cheapest_change": plan.cheapest_change,
        "assumptions": list(plan.assumptions),
        "next_command": plan.next_command,
        "recipes_priced": plan.recipes_priced,
        "versions": versions,
    }


def matrix_document(matrix: Matrix, versions: dict[str, str], absent: str) -> Document:
    return {
        "schema_version": SCHEMA_VERSION,
        "no_gpu_here": absent,
        "goal": _goal(matrix.goal),
        "model": model_document(matrix.model),
        "methods": list(matrix.methods),
        "cards": [_card(row, versions) for row in matrix.rows],
        "assumptions": list(matrix.assumptions),
        "versions": versions,
    }


def price_document(price: Price, versions: dict[str, str]) -> Document:
    """The price as DESIGN.md defines it; with the versions of libraries only where their code was executed."""
    sizes = {
        "peak_allocated_bytes": price.peak_allocated,
        "peak_reserved_bytes": price.peak_reserved,
        "process_bytes": price.process,
        "host_bytes": price.host,
        "disk_bytes": price.disk,
    }
    rates = {"step_seconds": price.step_seconds, "tokens_per_second": price.tokens_per_second}
    intervals: dict[str, list[float | None]] = {
        name: [round(size.low), round(size.high)] for name, size in sizes.items()
    }
    intervals |= {name: [finite(figure.low), finite(figure.high)] for name, figure in rates.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "evidence": price.evidence,
        **{name: round(size.value) for name, size in sizes.items()},
        **{name: finite(figure.value) for name, figure in rates.items()},
        "interval_95": intervals,
        "fits": price.fits,
        "verdict": price.verdict,
        "terms": price.terms,
        "phases": price.phases,
        "per_gpu": [_share(share) for share in price.gpus],
        "versions": versions,
    }


def error_document(message: str) -> Document:
    """What stands in the place of a recipe that has no price."""
    return {"schema_version": SCHEMA_VERSION, "error": message}


def cluster_document(cluster: Cluster) -> Document:
    return {
        "gpus": [gpu_document(gpu) for gpu in cluster.gpus],
        "nodes": cluster.nodes,
        "host": host_document(cluster.host),
        "peer_link": _link(cluster.peer_link),
        "node_link": _link(cluster.node_link),
        "hypothetical": cluster.hypothetical,
    }


def gpu_document(gpu: Gpu) -> Document:
    """One GPU; its kind by the catalogue's name."""
    document = fields(gpu)
    document["device"] = gpu.device.name
    document["title"] = gpu.device.title
    document["processes"] = [fields(process) for process in gpu.processes]
    return document


def device_document(device: Device) -> Document:
    """Every figure of a kind of GPU, and its sources."""
    links = {"host_link": _link(device.host_link), "peer_link": _link(device.peer_link)}
    return {"schema_version": SCHEMA_VERSION, **fields(device), **links}


def host_document(host: Host) -> Document:
    return fields(host)


def model_document(model: ModelSpec) -> Document:
    return {
        "name": model.name,
        "model_type": model.model_type,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": len(model.layers),
        "hidden_size": model.hidden_size,
        "vocabulary": model.vocabulary,
        "max_positions": model.max_positions,
        "tied": model.tied,
    }


def fields(noun: Any) -> Document:
    """The fields of a slotted noun, as they are; tuples become lists in JSON."""
    return {name: getattr(noun, name) for name in type(noun).__slots__}


def finite(value: float) -> float | None:
    """None for what JSON cannot write."""
    return value if math.isfinite(value) else None


def _alternative(plan: Plan, other: Alternative, versions: dict[str, str]) -> Document:
    return {**_candidate(plan, other.candidate, versions), "why": other.why}


def _candidate(plan: Plan, candidate: Candidate, versions: dict[str, str]) -> Document:
    seconds = job_seconds(plan, candidate)
    job = {"job_seconds": _ends(seconds), "gpu_hours": _ends(seconds.scaled(candidate.gpus / 3600))} if seconds else {}
    return {**_priced(candidate, versions), **job}


def _priced(candidate: Candidate, versions: dict[str, str]) -> Document:
    return {
        "method": candidate.method,
        "rung": candidate.rung + 1,
        "gpus": candidate.gpus,
        "recipe": to_document(candidate.recipe),
        "price": price_document(candidate.price, versions),
        "peak_moment": candidate.price.peak_moment,
        "seconds": candidate.price.seconds,
        "notes": list(candidate.price.notes),
        "dry_run": _dry_run(candidate.traced) if candidate.traced else None,
    }


def _dry_run(traced: Traced) -> Document:
    """What it took, the first time; what it found is in the price."""
    return {"layers_traced": traced.layers_traced, "seconds": traced.seconds}


def _ends(interval: Interval) -> Document:
    return {"value": finite(interval.value), "interval_95": [finite(interval.low), finite(interval.high)]}


def _card(row: MatrixRow, versions: dict[str, str]) -> Document:
    priced = {name: _priced(candidate, versions) if candidate else None for name, candidate in row.methods.items()}
    return {
        "device": row.device,
        "total_bytes": row.total_bytes,
        "best": row.best.method if row.best else None,
        "methods": priced,
    }


def _share(share: GpuShare) -> Document:
    return {
        "name": share.name,
        "index": share.index,
        "budget_bytes": share.budget_bytes,
        "headroom_bytes": share.headroom_bytes,
        "process_bytes": round(share.process.value),
        "verdict": share.verdict,
    }


def _link(link: Link | None) -> Document | None:
    return fields(link) if link else None
