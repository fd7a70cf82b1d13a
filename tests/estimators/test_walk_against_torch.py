"""The walk against torch itself: for every family, the bytes that autograd really saves in a forward pass.

The real transformers model is built on the meta device and run once, in float32 and without autocast (torch has none
for meta tensors); every storage that a saved-tensor hook sees, parameters apart, is counted once.
"""

import pytest

from estimators.allocation import held_bytes
from estimators.models import build, load_config
from estimators.recipe import Adapter, Recipe
from estimators.walk import walk
from tests.estimators.tiny import shallow, without_dropout

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PROFILES = (
    "llama-3.2-1b", "llama-7b", "mistral-7b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-2b", "gemma-2-2b", "gemma-3-1b",
    "gpt2", "opt-1.3b", "opt-350m", "pythia-1.4b", "phi-2", "phi-3-mini", "starcoder2-3b", "stablelm-2-1.6b", "olmo-1b",
    "olmo-2-1b", "granite-3.3-2b", "smollm3-3b", "falcon-7b",
)  # fmt: skip
LENGTH, BATCH = 256, 2


@pytest.mark.parametrize("name", PROFILES)
def test_saved_bytes_are_torchs_own(name: str) -> None:
    config = without_dropout(shallow(load_config(name), layers=2))
    recipe = Recipe(
        model=name, adapter=Adapter(method="full"), weights="float32", compute="float32", attention="eager",
        gradient_checkpointing=False, micro_batch=BATCH, sequence_length=LENGTH,
    )  # fmt: skip
    walked = walk(build(config), recipe)
    expected = walked.embedding_kept + walked.kept + walked.head.footprint.kept
    assert saved_bytes(dict(config.fields)) == pytest.approx(expected, rel=0.002)


class AnswersYes(torch.utils._python_dispatch.TorchDispatchMode):
    """Lets code ask a meta tensor for its value, as transformers asks whether a mask is all ones: it is."""

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        if operation is torch.ops.aten._local_scalar_dense.default:
            return arguments[0].dtype == torch.bool or 1
        return operation(*arguments, **(keywords or {}))


def saved_bytes(fields: dict[str, object]) -> int:
    """Bytes that stay allocated for what autograd saves in one forward pass, parameters and buffers apart."""
    kind = str(fields.pop("model_type"))
    config = transformers.AutoConfig.for_model(kind, **fields)
    config._attn_implementation, config.use_cache = "eager", False
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        tokens = torch.zeros((BATCH, LENGTH), dtype=torch.long)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: "torch.Tensor") -> "torch.Tensor":
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = held_bytes(storage.nbytes())
            held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    with AnswersYes(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens).loss
    assert loss.requires_grad
    return sum(saved.values())
