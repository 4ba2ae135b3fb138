"""Directories of GPTQ: written for other readers, and opened."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, ModelError
from inc_torch.export import attached_report
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.huggingface._gptq_tensors import GptqNumbers, read_layer
from inc_torch.quantizers import WeightOnlyLinear
from tests.unit.huggingface.conftest import vit

TOKENS = torch.arange(3, 19)[None]
HEAD_IN_FLOAT = {"lm_head": {"weight": {"dtype": "fp32"}}}
LAYERS = 2 * 7
UP = "model.layers.0.mlp.up_proj"


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **{"intermediate_size": 96, "tie_word_embeddings": True, "attention_bias": True, **options},
    )
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def fitted(weight, model=None, names=HEAD_IN_FLOAT, data=None, **options):
    config = PostTrainingQuantConfig(
        approach="weight_only", op_type_dict={".*": {"weight": weight}}, op_name_dict=names, **options
    )
    return quantization.fit(model or llama(), config, calib_dataloader=data)


def save(model, directory, **options):
    save_for_huggingface_upstream(model, None, directory, quant_method="gptq", **options)


def changed(directory, **entries):
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= entries
    path.write_text(json.dumps(config), encoding="utf-8")


def with_tensor(directory, name, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with zero points, and its directory."""
    directory = tmp_path_factory.mktemp("gptq")
    model = fitted({"group_size": 32, "scheme": "asym"})
    save(model, directory)
    return model, directory


@pytest.fixture
def directory(saved, tmp_path):
    """A copy of it that may be damaged."""
    for path in saved[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def values_by_numpy(tensors, name, bits, *, is_v2=False):
    """What AutoGPTQ's layout means, written down a second time."""

    def codes(words):  # along the first axis
        shifts = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
        return ((words.view(np.uint32)[:, None, :] >> shifts) & np.uint32(2**bits - 1)).reshape(-1, words.shape[1])

    part = {leaf: tensors[f"{name}.{leaf}"].numpy() for leaf in ("qweight", "qzeros", "scales", "g_idx")}
    weight = codes(part["qweight"]).astype(np.float32)
    zeros = codes(np.ascontiguousarray(part["qzeros"].T)).T.astype(np.float32) + (0 if is_v2 else 1)
    return ((weight - zeros[part["g_idx"]]) * part["scales"].astype(np.float32)[part["g_idx"]]).T


# ------------------------------------------------------------------------------ written


@pytest.mark.parametrize(
    "weight",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 4, "group_size": 32, "scheme": "asym"},
        {"bits": 8, "group_size": -1},
        {"bits": 2, "group_size": 16, "scheme": "asym"},
    ],
    ids=str,
)
@pytest.mark.parametrize("build", [llama, gpt2])
def test_tensors_mean_the_weights_of_the_model(build, weight, tmp_path):
    model = fitted(weight, build())
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    found = 0
    for name, layer in model.named_modules():
        if isinstance(layer, WeightOnlyLinear):
            outputs, inputs = layer.weight_shape
            groups = 1 if weight["group_size"] == -1 else inputs // weight["group_size"]
            assert tensors[f"{name}.qweight"].shape == (inputs * weight["bits"] // 32, outputs)
            assert tensors[f"{name}.qzeros"].shape == (groups, outputs * weight["bits"] // 32)
            assert {tensors[f"{name}.{leaf}"].dtype for leaf in ("qweight", "qzeros", "g_idx")} == {torch.int32}
            assert tensors[f"{name}.scales"].dtype == torch.float16
            if layer.bias is not None:
                assert torch.equal(tensors[f"{name}.bias"], layer.bias.half())
            scales = layer.scales.half().float().repeat_interleave(inputs // groups, 1)
            expected = layer.signed_codes() * scales
            values = values_by_numpy(tensors, name, weight["bits"], is_v2=config["checkpoint_format"] == "gptq_v2")
            assert np.array_equal(values, expected.numpy())
            assert f"{name}.weight" not in tensors
            found += 1
    assert found == (LAYERS if build is llama else 2 * 4)
    assert config == {
        "quant_method": "gptq",
        "bits": weight["bits"],
        "group_size": weight["group_size"],
        "sym": "scheme" not in weight,
        "desc_act": False,
        "checkpoint_format": "gptq" if weight["bits"] != 2 else "gptq_v2",  # where some zero points are 0
        "lm_head": False,
        "block_name_to_quantize": "model.layers" if build is llama else "transformer.h",
        "meta": config["meta"],
    }


def test_zero_points_are_stored_as_one_less(tmp_path):
    save(fitted({"bits": 4, "group_size": 32}), tmp_path)
    zeros = load_file(tmp_path / "model.safetensors")[f"{UP}.qzeros"]
    assert zeros.unique().tolist() == [0x77777777]


def test_zero_points_of_zero_are_written_in_the_second_format(tmp_path):
    model = llama()
    with torch.no_grad():
        model.get_submodule(UP).weight.abs_()
    model = fitted({"group_size": 32, "scheme": "asym"}, model)
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert config["checkpoint_format"] == "gptq_v2"
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors[f"{UP}.qzeros"].unique().tolist() == [0]
    again = OptimizedModel.from_pretrained(tmp_path)
    packed = model.export_compressed_model()
    for name in (UP, "model.layers.1.self_attn.q_proj"):
        values = values_by_numpy(tensors, name, 4, is_v2=True)
        assert np.array_equal(values, packed.get_submodule(name).weight.numpy())
        assert torch.equal(again.get_submodule(name).weight, packed.get_submodule(name).weight)


def test_layers_in_float_are_named_for_both_kinds_of_readers(tmp_path):
    floats = {"weight": {"dtype": "fp32"}}
    names = HEAD_IN_FLOAT | {".*down_proj": floats, r"model\.layers\.1\..*q_proj": floats}
    save(fitted({}, names=names), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    in_float = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    modules = [name for name, module in llama().named_modules() if isinstance(module, torch.nn.Linear)]
    (kept,) = config["modules_in_block_to_quantize"]
    assert [name for name in modules if not any(name.endswith(entry) for entry in kept)] == [*in_float, "lm_head"]
    skipped = [pattern.removeprefix("-:") for pattern in config["dynamic"]]
    assert [name for name in modules if any(re.match(pattern, name) for pattern in skipped)] == in_float
    again = OptimizedModel.from_pretrained(tmp_path)
    assert type(again.get_submodule(in_float[0])) is torch.nn.Linear
    assert sum(isinstance(module, WeightOnlyLinear) for module in again.modules()) == LAYERS - len(in_float)


def test_a_head_with_codes_is_written_in_float_and_untied(tmp_path):
    model = fitted({}, names=None)
    with pytest.warns(InexactWarning, match=r"'lm_head' of LlamaForCausalLM is written in float: directories of GPTQ"):
        save(model, tmp_path)
    assert isinstance(model.lm_head, WeightOnlyLinear)
    assert model.config.tie_word_embeddings
    again = OptimizedModel.from_pretrained(tmp_path)
    assert not again.config.tie_word_embeddings
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    rows = {row.name: row for row in attached_report(again).modules}
    assert (rows["lm_head"].bits, rows["lm_head"].scheme) == (32, None)
    assert rows[UP].bits == 4


def test_the_card_says_who_opens_it(saved):
    card = (saved[1] / "README.md").read_text(encoding="utf-8")
    assert "import inc_torch" not in card
    assert "- int4\n- gptq\n" in card
    assert "the packages optimum and gptqmodel" in card


def test_the_model_that_was_saved_is_as_before(tmp_path):
    model = fitted({})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(model, tmp_path / "gptq")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")
    save_for_huggingface_upstream(model, None, tmp_path / "own")
    again = type(model).from_pretrained(tmp_path / "own")
    assert torch.equal(again.get_submodule(UP).weight, model.get_submodule(UP).weight)
    save(again, tmp_path / "from own")
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("gptq", "from own")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


# ------------------------------------------------------------------------------ opened


def test_what_is_opened_computes_as_what_was_packed(saved):
    model, directory = saved
    again = OptimizedModel.from_pretrained(directory)
    packed = model.export_compressed_model()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, packed(TOKENS).logits)
    assert again.get_submodule(UP).scheme == "w4-g32-asym"
    assert again.get_submodule(UP).g_idx is None
    assert again.get_submodule(UP).layout.name == "int32-dim1-float32"
    assert [(row.name, row.bits, row.zeros) for row in attached_report(again).modules] == [
        (row.name, row.bits, row.zeros) for row in model.report().modules
    ]


def test_a_configuration_that_is_given_stays_as_it_is(saved):
    config = transformers.AutoConfig.from_pretrained(saved[1])
    OptimizedModel.from_pretrained(saved[1], config=config)
    assert config.quantization_config["quant_method"] == "gptq"


def test_it_can_be_saved_again_in_both_ways(saved, tmp_path):
    again = OptimizedModel.from_pretrained(saved[1])
    save_for_huggingface_upstream(again, None, tmp_path / "own")
    own = type(again).from_pretrained(tmp_path / "own")
    assert torch.equal(own.get_submodule(UP).weight, again.get_submodule(UP).weight)
    save(again, tmp_path / "gptq")
    tensors = [load_file(folder / "model.safetensors") for folder in (saved[1], tmp_path / "gptq")]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_inputs_in_the_order_of_their_importance_keep_their_groups(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(3, 60, (4, 16), generator=generator)} for _ in range(4)]
    weight = {"group_size": 32, "scheme": "asym", "algorithm": "GPTQ"}
    model = fitted(weight, data=data, recipes={"gptq_args": {"act_order": True}})
    reordered = [
        name
        for name, module in model.named_modules()
        if isinstance(module, WeightOnlyLinear) and module.g_idx is not None
    ]
    assert reordered
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert config["desc_act"]
    again, packed = OptimizedModel.from_pretrained(tmp_path), model.export_compressed_model()
    tensors = load_file(tmp_path / "model.safetensors")
    for name in reordered:
        assert torch.equal(again.get_submodule(name).g_idx, model.get_submodule(name).g_idx)
        assert torch.equal(again.get_submodule(name).weight, packed.get_submodule(name).weight)
        assert np.array_equal(values_by_numpy(tensors, name, 4), packed.get_submodule(name).weight.numpy())


def test_codes_and_scales_are_exact_in_a_model_of_another_dtype_and_in_shards(tmp_path):
    model = fitted({"group_size": 32})
    save(model, tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = OptimizedModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layer = again.get_submodule(UP)
    assert torch.equal(layer.scales, model.get_submodule(UP).scales.half().float())
    assert again(TOKENS).logits.dtype == torch.bfloat16


def test_g_idx_may_be_missing_and_older_names_are_known(directory, saved):
    path = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("g_idx")}
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]["checkpoint_format"], config["quantization_config"]["meta"]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    again = OptimizedModel.from_pretrained(directory)
    assert torch.equal(again.get_submodule(UP).weight, saved[0].export_compressed_model().get_submodule(UP).weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_formats_of_zero_points_are_told_apart(bits):
    count, middle = 32 // bits, 2 ** (bits - 1)
    wanted = [0, middle] + [1] * (count - 2)
    word = sum(value << (bits * place) for place, value in enumerate(wanted))
    ones = sum(1 << (bits * place) for place in range(count))
    wrapped = sum(((value - 1) % 2**bits) << (bits * place) for place, value in enumerate(wanted))
    stored = {"gptq_v2": word, "by word": word - ones, "one by one": wrapped}
    for name, number in stored.items():
        signed = (number + 2**31) % 2**32 - 2**31
        tensors = {
            "qweight": torch.zeros(1, count, dtype=torch.int32),
            "scales": torch.ones(1, count, dtype=torch.float16),
            "qzeros": torch.tensor([[signed]], dtype=torch.int32),
        }
        numbers = GptqNumbers(bits, -1, "gptq_v2" if name == "gptq_v2" else "gptq", name == "by word")
        found = read_layer(tensors, count, numbers)
        assert found.rounded.zero_points.flatten().tolist() == wanted, name


# ------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("weight", "names", "message"),
    [
        ({"bits": 3}, {}, r"has no place for 'model.layers.0.self_attn.q_proj', .*codes of 2, 4 or 8 bits, not 3"),
        ({"dtype": "nf4"}, {}, "optimum's layout has no codes of kind 'nf4'"),
        ({"group_size": 48}, {}, r"64 inputs are no multiple of its group size, 48"),
        (
            {},
            {".*0.mlp.up_proj": {"weight": {"bits": 8}}},
            r"one number of bits and one group size for all layers: 'model.layers.0.mlp.up_proj' has 8 bits and group "
            r"size 32, the others 4 and 32\. Quantize all alike",
        ),
    ],
)
def test_what_the_format_has_no_place_for_is_refused_by_name(weight, names, message, tmp_path):
    model = fitted(weight, names=HEAD_IN_FLOAT | names)
    with pytest.raises(ModelError, match=message):
        save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_sizes_without_a_kernel_are_refused(tmp_path):
    model = fitted({"group_size": -1}, llama(intermediate_size=72))
    with pytest.raises(ModelError, match=r"GPTQ has no place for .*72 outputs and 64 inputs are no multiples of 32"):
        save(model, tmp_path)


def test_models_that_are_no_language_models_or_not_packed_are_refused(tmp_path):
    with pytest.raises(ModelError, match="ViTForImageClassification: its readers open language models"):
        save(fitted({}, vit(), names=None), tmp_path)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no weight-only layer in a list of blocks"):
        save(llama(), tmp_path)
    dynamic = quantization.fit(llama(), PostTrainingQuantConfig(approach="dynamic"))
    with pytest.raises(ModelError, match=r"GPTQ has no place for 'model.embed_tokens', .* and \d+ more of Llama"):
        save(dynamic, tmp_path)
    with pytest.raises(
        ConfigError, match=r"quant_method='gptg'\): expected 'inc_torch' or 'gptq'. Did you mean 'gptq'"
    ):
        save_for_huggingface_upstream(fitted({}), None, tmp_path, quant_method="gptg")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"bits": 3}, "quantization_config.bits=3 of a GPTQ directory: expected 2, 4 or 8"),
        ({"bits": "four"}, "quantization_config.bits='four' of a GPTQ directory"),
        ({"bits": None}, "quantization_config.bits=None of a GPTQ directory"),
        ({"group_size": 0}, "quantization_config.group_size=0 of a GPTQ directory: expected -1 or an integer above 0"),
        ({"group_size": "32"}, "quantization_config.group_size='32' of a GPTQ directory"),
        (
            {"checkpoint_format": "marlin"},
            "checkpoint_format='marlin' of a GPTQ directory: expected 'gptq' or 'gptq_v2'",
        ),
        ({"bits": 8}, r"'model.layers.0.mlp.down_proj' of .* 'qweight' has shape \(12, 64\), expected \(24, 64\)"),
        ({"group_size": 16}, r"'qzeros' has shape \(3, 8\), expected \(6, 8\)"),
    ],
)
def test_directories_that_say_something_else_are_refused(directory, entries, message):
    changed(directory, **entries)
    with pytest.raises(ArtifactError, match=message):
        OptimizedModel.from_pretrained(directory)


@pytest.mark.parametrize(
    ("leaf", "change", "message"),
    [
        ("qweight", lambda x: x[:-1], r"'qweight' has shape \(7, 96\), expected \(8, 96\)"),
        ("qzeros", lambda x: x[:, 1:], r"'qzeros' has shape \(2, 11\), expected \(2, 12\)"),
        ("scales", lambda x: x.t(), r"'scales' has shape \(96, 2\), expected \(2, 96\)"),
        ("g_idx", lambda x: x[:5], r"'g_idx' has shape \(5,\), expected \(64,\)"),
        ("g_idx", lambda x: x + 1, r"'g_idx' has values from 1 to 2, expected groups from 0 to 1"),
        ("g_idx", lambda x: x - 9, r"'g_idx' has values from -9 to -8, expected groups from 0 to 1"),
        ("qweight", lambda x: x.to(torch.int64), r"'qweight' has dtype torch.int64, expected torch.int32"),
    ],
)
def test_tensors_of_other_shapes_and_values_are_refused_by_layer(directory, leaf, change, message):
    with_tensor(directory, f"{UP}.{leaf}", change)
    with pytest.raises(ArtifactError, match=rf"Layer '{UP}' of .* cannot be read as codes of GPTQ: {message}"):
        OptimizedModel.from_pretrained(directory)


def test_a_lost_tensor_and_a_layer_that_the_model_lacks_are_named(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    kept = tensors.pop(f"{UP}.scales")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"Layer '{UP}' of .*'scales' is missing"):
        OptimizedModel.from_pretrained(directory)
    tensors[f"{UP}.scales"] = kept
    tensors["model.layers.7.mlp.up_proj.qweight"] = tensors[f"{UP}.qweight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"Layer 'model.layers.7.mlp.up_proj' .*has no such module. Did you mean"):
        OptimizedModel.from_pretrained(directory)


def test_a_file_that_was_cut_is_refused(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is damaged or cut short"):
        OptimizedModel.from_pretrained(directory)


def test_a_directory_without_codes_is_refused(directory):
    model = llama()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ArtifactError, match="has the quantization method 'gptq', but no tensor"):
        OptimizedModel.from_pretrained(directory)


@pytest.mark.parametrize("optimum", [True, False])
def test_packed_models_are_saved_for_the_hub_too(optimum, tmp_path):
    model = fitted({"group_size": 32, "scheme": "asym"})
    packed = model.export_compressed_model(use_optimum_format=optimum, scale_dtype=torch.float16)
    save_for_huggingface_upstream(packed, None, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.get_submodule(UP).layout == packed.get_submodule(UP).layout
    assert again.get_submodule(UP).scales.dtype == torch.float16
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, packed(TOKENS).logits)
    plain = type(model).from_pretrained(tmp_path).dequantize()
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, packed(TOKENS).logits)
