"""Every catalogued model against the modules that transformers builds from the same config, on the meta device."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from estimators.model import Block, ModelSpec
from estimators.models import build, load_config, load_model, names

torch = pytest.importorskip("torch", reason="needs torch, to count what transformers builds")
transformers = pytest.importorskip("transformers", reason="needs transformers, to count what it builds")
TorchDispatchMode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode

FAMILIES = {str(load_config(name).fields["model_type"]): name for name in names()}
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
DEPTH_FIELDS = ("num_hidden_layers", "n_layer")

Shape = tuple[str, int, int, bool]


def shallow(name: str) -> tuple[dict[str, Any], ModelSpec]:
    """The config and the ModelSpec of a model, cut behind the layer by which every kind of block has occurred."""
    config, whole = load_config(name), load_model(name)
    depth = max(2, *(whole.layers.index(block) + 1 for block, _ in whole.block_counts))
    fields = {key: value[:depth] if key == "no_rope_layers" else value for key, value in config.fields.items()}
    fields |= {field: depth for field in DEPTH_FIELDS if field in fields}
    return fields, build(replace(config, fields=fields))


def transformers_model(fields: dict[str, Any]) -> Any:
    arguments = {key: value for key, value in fields.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(fields["model_type"], **arguments)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def shape_of(name: str, module: Any) -> Shape | None:
    """A layer that bitsandbytes and "all-linear" reach: nn.Linear or GPT-2's Conv1D."""
    own_name = name.rpartition(".")[2]
    if isinstance(module, torch.nn.Linear):
        return own_name, module.in_features, module.out_features, module.bias is not None
    if isinstance(module, transformers.pytorch_utils.Conv1D):
        return own_name, *module.weight.shape, True
    return None


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a module belongs to; None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def built_linears(model: Any) -> dict[int | None, Counter[Shape]]:
    found: dict[int | None, Counter[Shape]] = {}
    for name, module in model.named_modules():
        if (shape := shape_of(name, module)) is not None:
            found.setdefault(layer_of(name), Counter())[shape] += 1
    return found


def block_linears(block: Block) -> Counter[Shape]:
    return Counter(
        {
            (layer.name, layer.inputs, layer.outputs, layer.bias): layer.copies
            for layer in block.linears
            if layer.quantizable
        }
    )


def outer_linears(spec: ModelSpec) -> Counter[Shape]:
    head = (spec.head_name, spec.embedding_size or spec.hidden_size, spec.vocabulary, spec.head_bias)
    return Counter([head, *((layer.name, layer.inputs, layer.outputs, layer.bias) for layer in spec.extra_linears)])


@pytest.mark.parametrize("name", names())
def test_parameters_and_linears_are_those_of_transformers(name: str) -> None:
    check_same(transformers_model(dict(load_config(name).fields)), load_model(name))


def check_same(model: Any, spec: ModelSpec) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    assert model.config.tie_word_embeddings == spec.tied
    found = built_linears(model)
    assert found.pop(None) == outer_linears(spec)
    assert found == {number: block_linears(block) for number, block in enumerate(spec.layers)}
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in ATTENTIONS and hasattr(module, "sliding_window"):
            assert module.sliding_window == spec.layers[layer_of(path)].attention.window


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama-7b", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama-7b", {"head_dim": 64, "num_key_value_heads": 2}),
    ("mistral-7b", {"head_dim": 256}),
    ("qwen2.5-0.5b", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
    ("qwen2.5-0.5b", {"head_dim": 32, "tie_word_embeddings": False}),
    ("qwen3-0.6b", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("qwen3-30b-a3b", {"attention_bias": True, "num_experts": 12, "tie_word_embeddings": True}),
    ("qwen1.5-moe-a2.7b", {"qkv_bias": False, "mlp_only_layers": [1]}),
    ("gemma-2b", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gemma-2-2b", {"attention_bias": True, "layer_types": ["full_attention"] * 3 + ["sliding_attention"]}),
    ("gemma-3-1b", {"attention_bias": True, "sliding_window_pattern": 2}),
    ("gpt2", {"n_inner": 1000, "tie_word_embeddings": False}),
    ("opt-125m", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt-125m", {"_remove_final_layer_norm": True, "word_embed_proj_dim": 128}),
    ("pythia-70m", {"attention_bias": False, "use_parallel_residual": False, "tie_word_embeddings": True}),
    ("phi-1.5", {"qk_layernorm": True, "num_key_value_heads": 4}),
    ("phi-3-mini", {"head_dim": 64, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("falcon-7b", {"multi_query": False, "num_kv_heads": None, "bias": True}),
    ("falcon-7b", {"parallel_attn": False, "ffn_hidden_size": 1000, "tie_word_embeddings": False}),
    ("falcon-40b", {"num_ln_in_parallel_attn": 1, "num_kv_heads": 4}),
    ("starcoder2-3b", {"use_bias": False, "tie_word_embeddings": False}),
    ("olmo-1b", {"attention_bias": True, "num_key_value_heads": 4}),
    ("olmo-2-1b", {"attention_bias": True, "num_key_value_heads": 4}),
    ("olmo-3-7b", {"num_key_value_heads": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}),
    ("olmoe-1b-7b", {"attention_bias": True, "num_key_value_heads": 4}),
    ("granite-3.0-2b", {"attention_bias": True, "mlp_bias": True}),
    ("smollm3-3b", {"no_rope_layers": [0, 1, 0, 1], "use_sliding_window": True, "sliding_window": 16}),
    ("stablelm-3b", {"use_qkv_bias": True, "qk_layernorm": True, "num_key_value_heads": 8}),
    ("stablelm-3b", {"use_parallel_residual": True, "tie_word_embeddings": True}),
    ("mixtral-8x7b", {"head_dim": 64, "num_local_experts": 3}),
    ("deepseek-v2-lite", {"q_lora_rank": 96, "attention_bias": True, "n_shared_experts": 3}),
    ("deepseek-v3", {"q_lora_rank": None, "first_k_dense_replace": 1, "n_routed_experts": 16}),
]
"""What no catalogued model asks for, but a config.json may."""


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_options_build_what_transformers_builds(name: str, changes: dict[str, Any]) -> None:
    config = load_config(name)
    depth = dict.fromkeys((field for field in DEPTH_FIELDS if field in config.fields), 4)
    fields = {**config.fields, **depth, **changes}
    check_same(transformers_model(fields), build(replace(config, fields=fields)))


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_linears_are_in_the_order_of_the_forward_pass(name: str) -> None:
    fields, spec = shallow(name)
    model = transformers_model(fields)
    ran: dict[int, list[str]] = {}

    def record(path: str) -> Any:
        return lambda *_: ran.setdefault(layer_of(path) or 0, []).append(path.rpartition(".")[2])

    for path, module in model.named_modules():
        if shape_of(path, module) is not None and layer_of(path) is not None:
            module.register_forward_hook(record(path))
    forward(model)
    for number, block in enumerate(spec.layers):
        attention = [layer.name for layer in block.attention.linears]
        assert ran[number][: len(attention)] == attention
        if block.feed_forward.experts is None:
            assert ran[number] == [layer.name for layer in block.linears]


def forward(model: Any) -> None:
    """Eight tokens through the model. Routed experts pick tokens by their values, which meta tensors do not have."""
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            module.forward = lambda hidden, *_: torch.zeros_like(hidden)
    with torch.no_grad(), YesMode():
        model(input_ids=torch.zeros(1, 8, dtype=torch.long, device="meta"), use_cache=False)


class YesMode(TorchDispatchMode):
    """Answers what transformers asks about values, such as whether a batch is one plain sequence."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True
        return function(*args, **(kwargs or {}))


def test_blocks_that_are_equal_are_the_same_object() -> None:
    for name in names():
        layers = load_model(name).layers
        assert len({id(block) for block in layers}) == len(set(layers)), name


def test_layers_that_differ_differ_where_the_model_does() -> None:
    gemma = load_model("gemma-3-1b")
    assert [block.attention.window for block in gemma.layers[:7]] == [512] * 5 + [None, 512]
    assert [block.attention.window for block in load_model("gemma-2-2b").layers[:2]] == [4096, None]
    deepseek = load_model("deepseek-v3")
    assert [block.feed_forward.experts is None for block in deepseek.layers[:4]] == [True, True, True, False]
    smol = load_model("smollm3-3b")
    assert [block.attention.rotary_fraction for block in smol.layers[:4]] == [1, 1, 1, 0]


def test_mixtures_route_and_their_active_parameters_are_the_published_ones() -> None:
    # Model cards: Qwen3-30B-A3B 3.3B, Mixtral 8x7B 12.9B, DeepSeek-V3 37B (the embedding left out there).
    qwen, mixtral, deepseek = (load_model(name) for name in ("qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v3"))
    assert qwen.active_parameters == pytest.approx(3.3e9, rel=0.02)
    assert mixtral.active_parameters == pytest.approx(12.9e9, rel=0.01)
    assert deepseek.active_parameters - deepseek.embedding_parameters == pytest.approx(37e9, rel=0.02)
    experts = qwen.layers[0].feed_forward.experts
    assert experts is not None
    assert experts.fused
    assert not any(layer.quantizable for layer in qwen.layers[0].feed_forward.expert_linears)


@pytest.mark.parametrize(
    ("name", "changes", "routed"),
    [
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, [False, True, False, True]),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ("deepseek-v2-lite", {"first_k_dense_replace": 0}, [True] * 4),
    ],
)
def test_dense_layers_of_a_mixture_are_where_the_config_puts_them(
    name: str, changes: dict[str, Any], routed: list[bool]
) -> None:
    config = load_config(name)
    fields = {**config.fields, "num_hidden_layers": 4, **changes}
    spec = build(replace(config, fields=fields))
    assert [block.feed_forward.experts is not None for block in spec.layers] == routed
    assert sum(parameter.numel() for parameter in transformers_model(fields).parameters()) == spec.parameters


def test_training_dropouts_are_those_of_the_modules() -> None:
    def rates(name: str) -> tuple[float, float, float]:
        block = load_model(name).layers[0]
        return block.dropout, block.attention.dropout, load_model(name).embedding_dropout

    assert rates("gpt2") == (0.1, 0.1, 0.1)
    assert rates("opt-1.3b") == (0.1, 0.0, 0.0)  # transformers 5 drops nothing behind OPT's embedding
    assert rates("phi-2") == (0.1, 0.0, 0.0)
    assert rates("starcoder2-3b") == (0.1, 0.1, 0.1)
    assert rates("llama-7b") == (0.0, 0.0, 0.0)
