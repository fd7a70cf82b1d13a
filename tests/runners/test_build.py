"""One function makes a job real, the same on every device, and no other place does."""

import ast
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from dataclasses import replace

import torch

from estimators.errors import BadInput
from estimators.models import Config, load_config
from estimators.recipe import Adapter, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, QUANTIZATIONS
from runners import build as building
from runners.build import Built, build
from runners.losses import DeviceName
from tests.estimators.tiny import shallow

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256, "head_dim": 16}  # fmt: skip
LORA = Adapter(method="lora", rank=4, alpha=16, targets=("q_proj", "v_proj"))
RECIPES = {
    "full": Recipe(model="tiny", adapter=Adapter(method="full"), weights="float32"),
    "lora": Recipe(model="tiny", adapter=LORA),
    "dora": Recipe(model="tiny", adapter=replace(LORA, method="dora", targets="all-linear", dropout=0.1)),
    "nf4": Recipe(model="tiny", adapter=LORA, quantization="nf4"),
    "int8": Recipe(model="tiny", adapter=LORA, quantization="int8"),
    "adafactor": Recipe(model="tiny", adapter=LORA, optimizer="adafactor", gradient_checkpointing=False),
    "sgd": Recipe(model="tiny", adapter=LORA, optimizer="sgd", attention="eager"),
}


def tiny() -> Config:
    config = shallow(load_config("smollm2-135m"), layers=2)
    return replace(config, fields={**config.fields, **TINY})


def built(name: str, device: DeviceName) -> Built:
    return build(RECIPES[name], tiny(), device)


def own(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


@pytest.mark.parametrize("name", RECIPES)
def test_meta_and_cpu_build_the_same(name: str) -> None:
    described = [
        [
            (key, type(module).__name__, [(n, p.shape, p.dtype, p.requires_grad) for n, p in own(module)])
            for key, module in built(name, device).model.named_modules()
        ]
        for device in ("cpu", "meta")
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize("name", ["full", "lora", "dora", "nf4", "adafactor", "sgd"])
def test_what_is_built_trains(name: str) -> None:
    job = built(name, "cpu")
    optimizer = job.make_optimizer()
    tokens = torch.randint(0, 256, (2, 16))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    before = [parameter.detach().clone() for parameter in job.parameters]
    loss = job.loss(batch, torch.tensor(30))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    assert any(not torch.equal(old, new) for old, new in zip(before, job.parameters, strict=True))


def test_only_the_adapters_are_trained() -> None:
    names = [name for name, parameter in built("lora", "meta").model.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)


def test_every_technique_of_the_registry_has_a_row() -> None:
    assert set(ADAPTERS) == set(building.PEFT)
    assert set(QUANTIZATIONS) == {"none", *building.BITSANDBYTES_LAYERS}
    assert set(OPTIMIZERS) == set(building.OPTIMIZERS)
    assert set(ATTENTIONS) == set(building.ATTENTIONS)
    assert {f"transformers {loss}" for loss in LOSSES} <= set(building.LOSSES)


@pytest.mark.parametrize(
    "change", [{"quantization": "nf3"}, {"optimizer": "lomo"}, {"attention": "flashiest"}, {"weights": "float8"}]
)
def test_what_no_tool_has_is_refused_by_name(change: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=next(iter(change.values()))):
        build(replace(RECIPES["lora"], **change), tiny(), "meta").make_optimizer()  # type: ignore[arg-type]


def test_no_other_file_constructs_a_model() -> None:
    makers = {"from_config", "from_pretrained", "get_peft_model", "Linear4bit", "Linear8bitLt"}
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("profiles", "estimators", "runners", "planner")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in makers and "Tokenizer" not in ast.unparse(node)
    }
    assert found == {"runners/build.py", "runners/weights.py"}  # random weights, and those of a checkpoint


def test_what_transformers_quantises_is_quantised() -> None:
    """GPT-2's transposed layers are, a class of its own that inherits from Linear is not."""
    from torch import nn
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.pytorch_utils import Conv1D

    transposed = Conv1D(12, 4)
    assert building.is_quantized("attn.c_attn", transposed)
    assert building.linear_shape(transposed) == (4, 12)
    assert building.linear_shape(nn.Linear(4, 12)) == (4, 12)
    assert building.is_quantized("q_proj", nn.Linear(4, 12))
    assert not building.is_quantized("lm_head", nn.Linear(4, 12))
    assert not building.is_quantized("dense", FalconLinear(4, 12))


def test_what_no_checkpoint_holds_is_there_in_a_quantised_model() -> None:
    """Gemma multiplies its embeddings by a buffer that is computed, and a skeleton computes nothing."""
    fields = dict(load_config("gemma-2-2b").fields) | {"num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 64}
    fields |= {"layer_types": list(fields.get("layer_types") or [])[:2]} if "layer_types" in fields else {}
    config = Config(name="gemma", source="gemma", fields=fields)
    recipe = Recipe(model="gemma", adapter=LORA, quantization="nf4", attention="eager")
    model = building.build_model(recipe, config, "cpu")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.device.type == "meta"]
    scale = next(tensor for name, tensor in tensors if name.endswith("embed_scale"))
    assert scale.item() == 8.0  # the root of the width
