"""What a dry run counts beside memory: operations, flops and bytes; and that its shortcuts change nothing."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from dataclasses import replace
from types import SimpleNamespace

import torch

from estimators.catalogue import find_device
from estimators.models import build, load_config
from estimators.recipe import Adapter, Recipe
from estimators.work import Load, Work
from runners.dry import pointwise, recorder
from runners.dry.depth import same
from runners.dry.replacing import Launch
from runners.dry.shallow import shallow
from runners.dry.steps import record
from runners.dry.tally import Tally, tallying
from runners.dry.trace import dry_run

H200 = find_device("h200")
CONFIG = shallow(load_config("smollm2-135m"), 11)
FULL = Recipe(
    model="smollm2-135m", adapter=Adapter(method="full"), micro_batch=2, sequence_length=256,
    gradient_checkpointing=False,
)  # fmt: skip
LORA = replace(FULL, adapter=Adapter(method="lora", rank=8, alpha=32, targets=("q_proj", "v_proj")))
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def work_of(recipe: Recipe) -> Work:
    return dry_run(recipe, CONFIG, H200).work


def test_matrix_products_of_full_fine_tuning_are_six_flops_a_weight_and_token() -> None:
    model, work = build(CONFIG), work_of(FULL)
    embedding = model.vocabulary * model.hidden_size
    # The embedding is looked up; tied to the head, which multiplies, it counts once. Norms multiply no matrix.
    assert work.of(kind="matmul").flops == pytest.approx(6 * model.parameters * FULL.tokens_per_step, rel=0.002)
    assert model.tied and embedding < model.parameters


def test_adapters_spare_the_weights_gradients_and_checkpointing_runs_the_forward_pass_again() -> None:
    full, lora = work_of(FULL), work_of(LORA)
    assert lora.of("backward", "matmul").flops < 0.6 * full.of("backward", "matmul").flops
    again = work_of(replace(FULL, gradient_checkpointing=True))
    assert again.of("backward", "matmul").flops == full.of("backward", "matmul").flops
    recomputed = again.of("recomputation", "matmul").flops
    model = build(CONFIG)
    blocks = full.of("forward", "matmul").flops - 2 * FULL.tokens_per_step * model.vocabulary * model.hidden_size
    # Recomputation stops once it has what the backward pass needs: the last product of a block is not run again.
    assert 0.7 * blocks < recomputed < 0.8 * blocks


def test_fused_attention_is_counted_forward_again_and_backward() -> None:
    """Two products of queries and keys forward, five backward, over half of the keys; 9 heads of 64 in 11 blocks."""
    forward = 11 * 2 * 2 * LORA.tokens_per_step * LORA.sequence_length / 2 * 9 * 64
    plain, again = work_of(LORA), work_of(replace(LORA, gradient_checkpointing=True))
    assert plain.of("forward", "attention").flops == again.of("recomputation", "attention").flops == forward
    assert plain.of("backward", "attention").flops == again.of("backward", "attention").flops == 2.5 * forward
    assert plain.of("recomputation").calls == 0


def test_calls_of_the_libraries_modules_are_counted() -> None:
    work = work_of(replace(LORA, quantization="nf4"))
    assert work.of("forward", "adapter").calls == pytest.approx(2 * 11, abs=2)  # and the model's own wrappers
    assert work.of("forward", "quantized").calls == 7 * 11
    assert work.of("forward", "module").calls > 12 * 11
    assert work.of("forward", "nf4").calls == 7 * 11


def test_checkpointing_saves_tensors_by_hooks() -> None:
    assert work_of(LORA).of(kind="saved").calls == 0
    assert work_of(replace(LORA, gradient_checkpointing=True)).of("recomputation", "saved").calls > 10 * 11


def test_triton_kernels_that_only_stand_in_count_what_they_are_given_once_each() -> None:
    tally, tensor = Tally(), torch.empty(1024, dtype=torch.bfloat16, device="meta")
    tally.start(1)
    tally.begin("forward")
    with tallying(tally):
        Launch()[(8,)](tensor, tensor.view(32, 32), 3, eps=1e-6, out=torch.empty_like(tensor))
    Launch()[(8,)](tensor)  # outside of a dry run there is nobody to tell
    assert tally.work().of("forward", "elementwise") == Load(calls=1, size_bytes=2 * 2 * 1024)


def test_every_micro_batch_counts() -> None:
    one, four = work_of(FULL), work_of(replace(FULL, gradient_accumulation=4))
    assert four.of("forward").flops == pytest.approx(4 * one.of("forward").flops)
    assert four.of("optimizer").calls == pytest.approx(one.of("optimizer").calls)


@pytest.mark.parametrize("recipe", (FULL, replace(LORA, quantization="nf4", gradient_accumulation=3)))
def test_the_work_of_a_deep_model_is_that_of_all_its_blocks(recipe: Recipe) -> None:
    extended, whole = dry_run(recipe, CONFIG, H200), record(recipe, CONFIG, H200, 11)
    assert extended.layers_traced < 11
    assert extended.work.loads == whole.work.loads


def test_the_shortcuts_for_elementwise_operators_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shallow(CONFIG, 2)
    recipe = replace(LORA, adapter=replace(LORA.adapter, dropout=0.1), optimizer="adamw_torch")
    short = record(recipe, config, H200, 2)
    monkeypatch.setattr(pointwise, "handlers", dict)
    assert same(short, record(recipe, config, H200, 2))


@pytest.mark.parametrize("changes", ({"quantization": "nf4"}, {"quantization": "int8", "padded": True}))
def test_results_known_by_their_shapes_are_those_of_the_operators(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    config, recipe = shallow(CONFIG, 2), replace(LORA, **changes)  # type: ignore[arg-type]
    known, again = record(recipe, config, H200, 2), record(recipe, config, H200, 2)
    monkeypatch.setattr(
        recorder, "KNOWN", SimpleNamespace(run=lambda operator, args, kwargs: operator(*args, **kwargs))
    )
    plain = record(recipe, config, H200, 2)
    assert same(known, plain) and same(again, plain)
    assert known.work.loads == plain.work.loads


def test_loads_add_up() -> None:
    one = Work(loads={("forward", "matmul"): Load(calls=1, flops=8, size_bytes=2)})
    two = Work(loads={("backward", "matmul"): Load(calls=2, flops=4), ("forward", "matmul"): Load(calls=1)})
    total = one.plus(two, 3)
    assert total.of(kind="matmul") == Load(calls=10, flops=20, size_bytes=2)
    assert total.of("forward") == Load(calls=4, flops=8, size_bytes=2)
    assert total.plus(two, -3).of("backward") == Load()
