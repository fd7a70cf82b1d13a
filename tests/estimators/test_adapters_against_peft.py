"""What an adapter trains, against peft itself: every family's real code on the meta device, with real adapters."""

import pytest

from estimators.errors import BadInput
from estimators.families import FAMILIES
from estimators.models import build, load_config, load_model
from estimators.recipe import ALL_LINEAR, Adapter
from estimators.trainable import expert_targets, groups_of
from tests.estimators.tiny import shallow
from tests.recipes_drawn import MODELS

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")
RANK = 8
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern.*:RuntimeWarning")  # peft looks among modules alone
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_reaches_what_peft_reaches(family: str) -> None:
    config = shallow(load_config(MODELS[family]), layers=2)
    groups = groups_of(build(config), Adapter(method="lora", rank=RANK, alpha=RANK, targets=ALL_LINEAR))
    assert sorted(peft_shapes(dict(config.fields))) == sorted(
        (group.rows, group.columns) for group in groups for _ in range(group.count)
    )


def test_half_of_a_fused_expert_weight_is_refused_as_peft_refuses_it() -> None:
    model = load_model("deepseek-v2-lite")
    assert expert_targets(model, ("gate_proj", "up_proj", "down_proj")) == {"gate_up_proj", "down_proj"}
    with pytest.raises(BadInput, match="name both, or neither"):
        expert_targets(model, ("gate_proj",))


def peft_shapes(fields: dict[str, object]) -> list[tuple[int, int]]:
    """Rows and columns of each trainable matrix."""
    settings = transformers.AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(settings)
        config = peft.LoraConfig(r=RANK, target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    return [(item.shape[0], item.shape[1]) for item in model.parameters() if item.requires_grad]
