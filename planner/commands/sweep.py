"""`plan sweep`: runs candidates on this machine's GPUs, and says which recipe to use, with the record behind it."""

import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from planner import lists, options
from planner.commands.emitting import schedule_names
from planner.commands.ordering import LEAST_STEPS, Subject, order_of, path_of, subject_of
from planner.commands.parameters import AS_JSON, QUIET, VERBOSE, Read, as_typed
from planner.commands.plan import SECTIONS

if TYPE_CHECKING:
    from planner.sweep.appraise import OnCpu, OnGpus
    from planner.sweep.result import Listener, Sweep
    from planner.sweep.run import Order, Teaching
    from planner.sweep.space import Terms
    from runners.executors import Executor

OBJECTIVES = ("loss", "memory", "speed", "pareto")
LONGEST_TRIAL_SECONDS, LONGEST_STEP_SECONDS = 7 * 86_400.0, 900.0
"""After which a trial hangs, where no budget says so earlier."""
STORAGE = "PLAN_SWEEP_STORAGE"
"""The environment variable of --storage: an address with a password is better not typed."""
REPLACED = ("rank", "alpha", "dropout", "targets", "methods", "tokens", "samples", "offload", "objective", "loss",
            "learning_rate", "micro_batch")  # fmt: skip
WORK = tuple(
    option
    for name in ("Model and machine", "What is learned", "How it is run")
    for option in SECTIONS[name]
    if option.name not in REPLACED
)
OF_THE_SPACE = (
    click.Option(["--methods"], type=Read(options.read_names, "NAMES"), default="lora", show_default=True,
                 help="lora, qlora, full, dora …"),
    click.Option(["--ranks"], type=Read(lists.wholes(1, 65_536), "N,N,…"), default="4,8,16,32,64,128",
                 show_default=True, help="Of the adapter."),
    click.Option(["--alpha-ratio"], type=Read(options.whole(1, 1024), "N"), default=4, show_default=True,
                 help="alpha is so many times the rank, at every rank."),
    click.Option(["--learning-rates"], type=Read(lists.read_rates, "RATES"),
                 help="1e-4,2e-4, or drawn from 1e-5..1e-3; by default 2e-4, of full fine-tuning 2e-5."),
    click.Option(["--targets"], type=Read(lists.read_target_list, "LAYERS"), multiple=True,
                 help="q_proj,v_proj or all-linear; repeat it to try several. By default queries and values."),
    click.Option(["--dropouts"], type=Read(lists.read_shares, "SHARES"), default="0", help="Of the adapter."),
    click.Option(["--micro-batches"], type=Read(lists.wholes(1, 65_536), "N,N,…"),
                 help="By default the largest that fits, at each rank."),
    click.Option(["--losses"], type=Read(options.read_names, "NAMES"), help="plain,liger; by default plain."),
    click.Option(["--trials"], type=Read(options.whole(1, 10_000), "N"),
                 help="At most; by default every configuration of up to 64, and 40 of more."),
)  # fmt: skip
OF_A_TRIAL = (
    click.Option(["--data"], type=Read(as_typed, "FILE"), help="JSONL of prompt/completion or messages."),
    click.Option(["--held-out"], type=Read(as_typed, "FILE"), help="JSONL to evaluate on; else a tenth of the data."),
    click.Option(["--weights"], type=Read(as_typed, "random|FOLDER"),
                 help="A checkpoint folder with safetensors, by default --model's; random tells of memory and speed."),
    click.Option(["--steps"], type=Read(options.whole(LEAST_STEPS, 1_000_000), "N"),
                 help="Optimizer steps of each trial; by default 50."),
    click.Option(["--tokens-per-trial"], type=Read(options.read_count, "N"), help="In place of --steps: 1M."),
    click.Option(["--seed"], type=Read(options.whole(0, options.LARGEST_SEED), "N"), default=42, show_default=True),
    click.Option(["--repeats"], type=Read(options.whole(0, 20), "N"), default=2, show_default=True,
                 help="Further seeds of the leader: they show how much of a difference is chance."),
    click.Option(["--schedule"], type=Read(options.choice(schedule_names), "NAME", schedule_names), default="linear",
                 show_default=True, help="Of the learning rate: linear, cosine, constant."),
    click.Option(["--warm-up-steps"], type=Read(options.whole(0, 1_000_000), "N"), help="By default a tenth."),
    click.Option(["--evaluate-every"], type=Read(options.whole(1, 1_000_000), "N"), help="By default at the end."),
    click.Option(["--patience"], type=Read(options.whole(1, 1_000), "N"), help="Evaluations without a lower loss."),
    click.Option(["--metric"], type=Read(as_typed, "MODULE:FUNCTION"), help="Your own score of generations."),
)  # fmt: skip
OF_THE_SWEEP = (
    click.Option(["--budget", "budget_seconds"], type=Read(lists.read_duration, "TIME"), help="2h, 90m: of it all."),
    click.Option(["--objective"], type=Read(options.choice(lambda: OBJECTIVES), "NAME"), default="loss",
                 show_default=True, help="loss, memory, speed, or pareto for the best of all three."),
    click.Option(["--gpus-per-trial"], type=Read(options.whole(1, 1024), "N"), default=1, show_default=True),
    click.Option(["--folder"], type=Read(as_typed, "FOLDER"), help="Of the sweep; the same command goes on there."),
    click.Option(["--storage"], type=Read(as_typed, "URL"), envvar=STORAGE, show_envvar=True,
                 help="An SQLAlchemy URL; by default an SQLite file in the folder."),
    click.Option(["--cluster"], type=Read(as_typed, "ADDRESS"), help="Of Ray: auto, HOST:PORT, local."),
    click.Option(["--cpu"], is_flag=True, help="On the CPU: loss and time are measured, and memory is not."),
    click.Option(["--store", "store_path"], type=Read(as_typed, "PATH"), help="Another store of measurements."),
    click.Option(["--share"], is_flag=True, help="Measure although somebody else is on a GPU."),
)  # fmt: skip


def _run(**values: Any) -> int:
    os.environ.pop(STORAGE, None)  # no business of the trials
    subject = subject_of(values)
    order = order_of(subject, values)
    from planner.report.sweep import Screenplay

    with Screenplay(as_json=values["as_json"], quiet=values["quiet"]) as play:
        sweep = _swept(subject, order, values, play.hear)
    play.close(sweep)
    return sweep.exit_code


def _swept(subject: Subject, order: "Order", values: Mapping[str, Any], listen: "Listener") -> "Sweep":
    from planner.sweep.run import run

    appraiser = _appraiser(subject, order.work.terms, values)
    executor = _executor(subject, values)
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        teaching = _teaching(subject, order, appraiser, values)
        return run(order, appraiser, executor, listen, teaching, appraiser.foresee)
    finally:
        executor.close()
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _appraiser(subject: Subject, terms: "Terms", values: Mapping[str, Any]) -> "OnCpu | OnGpus":
    from planner.dry import tracer_of, what_is_missing
    from planner.sweep.appraise import OnCpu, OnGpus

    if subject.cluster is None:
        return OnCpu(subject.goal, subject.model, subject.rules, terms)
    tracer = None if values["fast"] or what_is_missing() else tracer_of(subject.config)
    return OnGpus(subject.goal, subject.model, subject.cluster, subject.rules, terms, tracer)


def _executor(subject: Subject, values: Mapping[str, Any]) -> "Executor":
    from runners.watching import Limits

    per_trial, share = values["gpus_per_trial"], values["share"]
    limits = Limits(total_seconds=values["budget_seconds"] or LONGEST_TRIAL_SECONDS, step_seconds=LONGEST_STEP_SECONDS)
    if values["cluster"] is not None:
        from runners.executors.ray import RayExecutor

        address = None if values["cluster"] == "local" else values["cluster"]
        return RayExecutor(address, per_trial=per_trial, share=share, limits=limits)
    from runners.executors.local import LocalExecutor

    gpus = subject.cluster.gpus if subject.cluster is not None else ()
    return LocalExecutor(gpus, per_trial=per_trial, share=share, limits=limits)


def _teaching(subject: Subject, order: "Order", appraiser: "OnCpu | OnGpus", values: Mapping[str, Any]) -> "Teaching":
    from planner.report.paint import say
    from planner.sweep.appraise import OnGpus
    from planner.sweep.lessons import Lessons

    if values["cluster"] is not None or (subject.cluster is not None and subject.cluster.hypothetical):
        return lambda screen, queue: lambda trial: None  # what other machines took teaches nothing of this one

    def teach(screen: Any, queue: Any) -> Lessons:
        prices = appraiser if isinstance(appraiser, OnGpus) else None
        return Lessons(order.folder, path_of(values["store_path"]), subject.cluster, subject.model, screen, prices,
                       queue.refresh, lambda line: say(f"warning: {line}"), subject.config.fields)  # fmt: skip

    return teach


command = click.Command(
    "sweep",
    short_help="Run candidates for real: the rank to use, with the record that shows why.",
    help="Run fine-tuning trials on this machine's GPUs over LoRA ranks, with alpha = 4 × rank, and what else is "
    "listed; each trains on the same number of tokens. What cannot fit by estimate is never started. The result is "
    "the recipe to use, why, and the Pareto front of loss, memory and speed. The same command goes on after Ctrl-C, "
    "a kill or a power cut. --json writes JSON Lines: a document for every event, the last one for the whole "
    "sweep.\n\nExit codes: 0 done, 2 a wrong option, data or weights that no trial can use, a database out of "
    "reach or a budget too short for one trial, 3 nothing fits by estimate, 4 no usable GPU, 5 every trial out of "
    "memory, 130 interrupted.",
    callback=_run,
    params=[*WORK, *OF_THE_SPACE, *OF_A_TRIAL, *OF_THE_SWEEP, AS_JSON, QUIET, VERBOSE,
            click.Option(["--offline"], is_flag=True, help="Never ask the Hub.")],
)  # fmt: skip
