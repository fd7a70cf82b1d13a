"""From the options of `plan sweep` to the sweep that they order: the subject, the space, the work of each trial."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimators.errors import BadInput, NoUsableGpu
from planner import options
from planner.commands import closing, machine
from planner.commands.plan import goal_of
from planner.usual import WARM_UP_SHARE

if TYPE_CHECKING:
    from estimators.hardware import Cluster
    from estimators.learning import Training
    from estimators.model import ModelSpec
    from estimators.models import Config
    from planner.goal import Goal
    from planner.rules import Rules
    from planner.sweep.ledger import Work
    from planner.sweep.run import Order
    from planner.sweep.space import Space
    from planner.sweep.supervisor import Settings

LEAST_STEPS, STEPS = 4, 50
FIXED = (
    "optimizer", "precision", "attention", "trainer", "padded", "packing", "gradient_checkpointing",
    "expandable_segments",
)  # fmt: skip
"""Of the goal, what changes the recipes of a sweep beside what its space and its terms hold."""
NOT_ON_CPU = {
    "optimizer": "--optimizer", "precision": "--precision", "trainer": "--trainer",
    "gradient_checkpointing": "--checkpointing", "expandable_segments": "--expandable-segments",
    "vram_budget_bytes": "--vram-budget", "headroom_bytes": "--headroom", "gpus": "--gpus", "share": "--share",
    "gpus_per_trial": "--gpus-per-trial", "assume_idle": "--assume-idle", **machine.OF_A_MACHINE,
}  # fmt: skip
ALONE = ("gpus_per_trial", "nodes")
"""Of which a CPU is one."""
VARYING = (
    "rows of data differ in length, and torch's usual allocator keeps memory for every width of a batch that it met: "
    "trials run with expandable segments, which do not, and the command to go on with says so too"
)
PLANNING = (
    "on such a card torch's attention is cuDNN's, which plans anew for every width (0.15 s and more): trials of "
    "short rows run without it (--attention sdpa_no_cudnn); packed rows (--packing) are of one width and need neither"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is swept, and where."""

    goal: "Goal"
    rules: "Rules"
    config: "Config"
    model: "ModelSpec"
    cluster: "Cluster | None"
    """None: on the CPU."""


def subject_of(values: Mapping[str, Any]) -> Subject:
    """
    Raises:
        NoUsableGpu: this machine has none, and --cpu was not given.
        BadInput: --model is missing, or --gpus describes others.
    """
    from estimators.models import build
    from planner.commands.plan import config_named, rules_at

    if values["model"] is None:
        raise BadInput("--model is missing: plan sweep --model llama-3.2-1b --weights FOLDER --data train.jsonl")
    _refuse_on_cpu(values)
    rules, config = rules_at(values["rules_path"]), config_named(values["model"], offline=values["offline"])
    goal = replace(
        goal_of({**values, "methods": (), "targets": None, "top": 0, "objective": "quality"}), offload="never"
    )
    cluster = None if values["cpu"] else _cluster(values)
    if cluster is not None:
        from planner.learned import calibration_of

        goal = replace(goal, calibration=calibration_of(cluster, path_of(values["store_path"])))
    return Subject(goal=goal, rules=rules, config=config, model=build(config), cluster=cluster)


def _refuse_on_cpu(values: Mapping[str, Any]) -> None:
    """What a sweep on the CPU has no use for is refused, not ignored."""
    usual = (None, False, "transformers")
    for name, option in NOT_ON_CPU.items():
        one = name in ALONE and values[name] == 1
        if values["cpu"] and not one and (values[name] not in usual or (values[name] is False and name in FIXED)):
            raise BadInput(f"{option} does not go with --cpu: there every trial is one process, in float32, by "
                           "adamw_torch, without checkpointing")  # fmt: skip


def _cluster(values: Mapping[str, Any]) -> "Cluster":
    if values["gpus"] is not None:
        if values["cluster"] is None:
            raise BadInput("plan sweep runs on the GPUs of this machine: leave --gpus at auto")
        return machine.described(values)
    probe = machine.look(values["quiet"])
    if probe.absent:
        raise NoUsableGpu(f"no GPU here ({probe.absent}), and a sweep measures; --cpu measures loss and time without")
    return machine.found(probe, values)


def path_of(text: str | None) -> Path | None:
    return Path(text) if text else None


def order_of(subject: Subject, values: Mapping[str, Any]) -> "Order":
    from planner.sweep.address import address_of
    from planner.sweep.run import Order

    settings, work = _settings(subject, values), _work(subject, values)
    order = Order(
        space=_space(subject, values),
        settings=settings,
        work=work,
        folder=Path(),
        address=address_of(values["storage"], Path()),
        fixed=_fixed(subject),
        most_trials=values["trials"],
    )
    folder = Path(values["folder"] or f"sweep-{order.study}").absolute()
    return replace(order, folder=folder, address=address_of(values["storage"], folder))


def _fixed(subject: Subject) -> str:
    from estimators.strict import encoded

    cluster, goal = subject.cluster, {name: getattr(subject.goal, name) for name in FIXED}
    devices = sorted({gpu.device.name for gpu in cluster.gpus}) if cluster is not None else ["cpu"]
    return json.dumps([goal, devices, encoded(subject.rules)])


def _space(subject: Subject, values: Mapping[str, Any]) -> "Space":
    from estimators.recipe import ALL_LINEAR
    from estimators.trainable import target_names
    from planner.sweep.space import Space

    subject.rules.rungs(values["methods"])  # an unknown one is refused by name
    for targets in values["targets"] or ():  # and so is a layer
        target_names(subject.model, ALL_LINEAR if targets == (ALL_LINEAR,) else targets)
    for loss in values["losses"] or ():
        options.choice(lambda: ("plain", "liger"))(loss, "--losses")
    return Space(
        methods=values["methods"],
        ranks=values["ranks"],
        alpha_ratio=values["alpha_ratio"],
        learning_rates=values["learning_rates"],
        targets=values["targets"] or (None,),
        dropouts=values["dropouts"],
        micro_batches=values["micro_batches"] or (None,),
        losses=values["losses"] or (None,),
    )


def _settings(subject: Subject, values: Mapping[str, Any]) -> "Settings":
    from estimators.pricing import budget_bytes
    from planner.sweep.space import RSLORA
    from planner.sweep.supervisor import Settings

    if values["data"] is None and values["objective"] in ("loss", "pareto"):
        raise BadInput("--data is missing, and losses are of data; --objective memory or speed does without")
    if values["data"] is None and values["held_out"] is not None:
        raise BadInput("--held-out is evaluated beside --data, which is missing")
    cluster = subject.cluster
    if cluster is None and values["objective"] == "memory":
        raise BadInput("--objective memory needs a GPU: on the CPU no memory is measured")
    measured = {"loss": values["data"] is not None, "vram_bytes": cluster is not None, "tokens_per_second": True}
    limit = values["vram_budget_bytes"]
    budgets = [budget_bytes(gpu, limit, values["assume_idle"]) for gpu in cluster.gpus] if cluster is not None else []
    notes = [RSLORA.format(ratio=values["alpha_ratio"])] if values["methods"] != ("full",) else []
    if cluster is not None and values["data"] is not None and not subject.goal.packing:
        notes += _of_varying_rows(subject, cluster)
    if cluster is None:
        notes.append("on the CPU, in float32: loss and time are measured, and memory is not")
    return Settings(
        objective=values["objective"],
        objectives=tuple(name for name, wanted in measured.items() if wanted),
        budget_seconds=values["budget_seconds"],
        repeats=values["repeats"],
        vram_budget_bytes=min(budgets, default=None),
        notes=(*notes, *closing.unwritten(values)),
        options=tuple(closing.options_of(subject, values)),
    )


def _of_varying_rows(subject: Subject, cluster: "Cluster") -> Iterator[str]:
    """What the search does for them, and the user did not say."""
    from planner.search import MOST_SCORES, default_length, plans_anew

    goal = subject.goal
    length = goal.sequence_length or default_length(subject.model, subject.rules)
    if goal.expandable_segments is None:
        yield VARYING
    if plans_anew(goal, subject.model, cluster) and length**2 <= MOST_SCORES:
        yield PLANNING


def _work(subject: Subject, values: Mapping[str, Any]) -> "Work":
    """What all trials do: the same number of tokens, of the same examples."""
    from planner.sweep.ledger import Work
    from planner.sweep.space import Terms

    defaults, goal = subject.rules.defaults, subject.goal
    batch, length = goal.global_batch or defaults.global_batch, goal.sequence_length or defaults.sequence_length
    if values["steps"] and values["tokens_per_trial"]:
        raise BadInput("give --steps or --tokens-per-trial, not both")
    tokens = values["tokens_per_trial"]
    steps = max(-(-tokens // (batch * length)), LEAST_STEPS) if tokens else values["steps"] or STEPS
    weights = _weights(values)
    terms = Terms(
        model=goal.model,
        steps=steps,
        global_batch=batch,
        sequence_length=length,
        weights=weights,
        data=_digest(values["data"], "--data"),
        held_out=_digest(values["held_out"], "--held-out"),
        seed=values["seed"],
        devices=values["gpus_per_trial"],
    )
    return Work(
        terms=terms,
        config=subject.config.fields,
        training=_training(values, steps),
        weights=weights,
        data=values["data"] and str(Path(values["data"]).resolve()),
        cap_bytes=values["vram_budget_bytes"],
    )


def _weights(values: Mapping[str, Any]) -> str:
    """
    Raises:
        BadInput: losses are asked for, and there are no weights to train; or they are no folder.
    """
    given = values["weights"]
    if given is None and Path(values["model"]).is_dir() and any(Path(values["model"]).glob("*.safetensors")):
        given = values["model"]
    if given in (None, "random") and values["data"] is not None:
        raise BadInput("--data needs --weights FOLDER: a checkpoint with safetensors and its tokenizer")
    if given in (None, "random"):
        return "random"
    if not Path(given).is_dir():
        raise BadInput(f"--weights {given}: no such folder")
    return str(Path(given).resolve())


def _training(values: Mapping[str, Any], steps: int) -> "Training":
    from estimators.learning import Training, check

    warm_up = values["warm_up_steps"]
    training = Training(
        schedule=values["schedule"],
        warm_up_steps=max(round(WARM_UP_SHARE * steps), 1) if warm_up is None else warm_up,
        held_out=values["held_out"] and str(Path(values["held_out"]).resolve()),
        evaluate_every=values["evaluate_every"],
        patience=values["patience"],
        metric=values["metric"],
        metric_folder=str(Path.cwd()) if values["metric"] else None,
    )
    to_come = values["data"] and str(Path(values["data"]).resolve())  # a share of it will be held out
    check(replace(training, held_out=training.held_out or to_come))
    if training.metric is not None:
        from runners.metric_source import check_source

        check_source(training.metric, Path.cwd())
    return training


def _digest(name: str | None, option: str) -> str | None:
    """Of a file's content.

    Raises:
        BadInput: it cannot be read.
    """
    if name is None:
        return None
    try:
        with Path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise BadInput(f"{option} {name}: {error.strerror}") from None
