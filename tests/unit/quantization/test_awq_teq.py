"""AWQ and TEQ through `quantization.fit`: better than rounding to the nearest, folded where possible, kept in files."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import inc_torch
from inc_torch import save_for_huggingface_upstream
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.huggingface import OptimizedModel
from inc_torch.quantization import fit
from inc_torch.quantizers import WeightOnlyLinear
from tests.support.language_models import BATCHES, FLOAT_HEAD, error, gpt2, llama, logits, rounding


def outlying(model):
    """Make some channels of what goes into layers great, as they are in trained language models."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if "norm" in name or name.endswith(("ln_1", "ln_2", "up_proj")):
                module.weight[::11] *= 15
    return model


def trained(model):
    """A model whose loss on the batches is worth something: it has learned some of them by heart."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60):
        batch = BATCHES[step % 2]
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def notes(model):
    return {row.name: " ".join(row.notes) for row in model.report().modules}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("folding", [False, True])
def test_awq_is_nearer_than_rounding_to_the_nearest(make, scheme, folding, tmp_path):
    model = outlying(make())
    before = copy.deepcopy(model.state_dict())
    nearest = fit(model, rounding("RTN", scheme=scheme, op_name_dict=FLOAT_HEAD), calib_dataloader=BATCHES)
    recipes = {"awq_args": {"folding": folding}}
    made = fit(
        model, rounding("AWQ", scheme=scheme, op_name_dict=FLOAT_HEAD, recipes=recipes), calib_dataloader=BATCHES
    )
    assert error(made, model) < 0.75 * error(nearest, model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)  # the user's model stays
    made.save(tmp_path / "own")
    assert torch.equal(logits(inc_torch.load(tmp_path / "own", make())), logits(made))
    save_for_huggingface_upstream(made, None, tmp_path / "hub")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hub")), logits(made))
    factors = [name for name, module in made.named_modules() if getattr(module, "input_factor", None) is not None]
    assert bool(factors) == (not folding)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_scales_change_nothing_but_the_rounding(make):
    """With 8 bits nearly nothing is rounded away, so that any scale that is not taken back would show."""
    model = outlying(make())
    made = fit(model, rounding("AWQ", bits=8, op_name_dict=FLOAT_HEAD), calib_dataloader=BATCHES)
    nearest = fit(model, rounding("RTN", bits=8, op_name_dict=FLOAT_HEAD))
    assert error(made, model) < error(nearest, model) < 1e-3 * logits(model).var()


def test_where_the_scales_of_awq_go():
    model = outlying(llama())
    made = fit(model, rounding("AWQ"), calib_dataloader=BATCHES)
    layer, told = made.model.layers[0], notes(made)
    assert told["model.layers.0.self_attn.k_proj"].endswith("its scale is in 'model.layers.0.input_layernorm'")
    assert told["model.layers.0.mlp.down_proj"].endswith("its scale is in 'model.layers.0.mlp.up_proj'")
    assert told["model.layers.0.self_attn.o_proj"].endswith("it scales its inputs")
    assert "AWQ, 1024 tokens" in told["model.layers.0.mlp.up_proj"]
    assert "in none of the blocks" in told["lm_head"]
    # The norm took what q, k and v were multiplied with: all three the same.
    scale = model.model.layers[0].input_layernorm.weight / layer.input_layernorm.weight
    assert scale.std() > 0.1
    for name in ("q_proj", "k_proj", "v_proj"):
        before, after = (getattr(of.self_attn, name).weight for of in (model.model.layers[0], layer))
        step = layer.self_attn.q_proj.scales.max()
        assert ((before * scale - after).abs() <= 0.6 * step + 0.1 * (before * scale).abs().max()).all()
    assert layer.self_attn.o_proj.input_factor is not None
    assert layer.mlp.down_proj.input_factor is None


def test_awq_without_scales_or_without_clipping():
    model = outlying(llama())
    errors = {
        (scale, clip): error(
            fit(
                model,
                rounding(
                    "AWQ",
                    op_name_dict=FLOAT_HEAD,
                    recipes={"awq_args": {"enable_auto_scale": scale, "enable_mse_search": clip}},
                ),
                calib_dataloader=BATCHES,
            ),
            model,
        )
        for scale in (True, False)
        for clip in (True, False)
    }
    nearest = error(fit(model, rounding("RTN", op_name_dict=FLOAT_HEAD)), model)
    assert errors[False, False] == nearest  # nothing is left but rounding to the nearest
    assert errors[True, True] < errors[True, False] < nearest
    assert errors[True, True] < errors[False, True] < nearest


def test_algorithms_can_be_mixed_and_a_scale_is_not_folded_where_another_algorithm_reads():
    rules = {
        **FLOAT_HEAD,
        r".*\.0\..*v_proj": {"weight": {"bits": 3, "group_size": 16, "scheme": "asym", "algorithm": "GPTQ"}},
        r".*\.1\..*": {"weight": {"bits": 3, "group_size": 16, "scheme": "asym", "algorithm": "RTN"}},
    }
    model = outlying(llama())
    made = fit(model, rounding("AWQ", op_name_dict=rules), calib_dataloader=BATCHES)
    told = notes(made)
    assert told["model.layers.0.self_attn.q_proj"].endswith("it scales its inputs")
    assert "GPTQ, 1024 tokens" in told["model.layers.0.self_attn.v_proj"]
    assert "tokens" not in told["model.layers.1.mlp.up_proj"]
    norms = [made.model.layers[0].input_layernorm.weight, model.model.layers[0].input_layernorm.weight]
    assert torch.equal(*norms)
    assert error(made, model) < error(fit(model, rounding("RTN", op_name_dict=FLOAT_HEAD)), model)


def test_samples_are_those_of_the_calibration():
    made = fit(llama(), rounding("AWQ", calibration_sampling_size=20), calib_dataloader=BATCHES)
    assert "AWQ, 384 tokens" in notes(made)["model.layers.0.mlp.up_proj"]


@pytest.mark.parametrize("folding", [False, True])
def test_teq_brings_the_loss_down(folding, tmp_path):
    model = trained(outlying(llama()))
    recipes = {"teq_args": {"folding": folding, "steps": 60, "lr": 0.01}}
    made = fit(model, rounding("TEQ", bits=2, op_name_dict=FLOAT_HEAD, recipes=recipes), calib_dataloader=BATCHES[:2])
    nearest = fit(model, rounding("RTN", bits=2, op_name_dict=FLOAT_HEAD))

    def loss(model):
        with torch.no_grad():
            return sum(model(**batch, labels=batch["input_ids"]).loss.item() for batch in BATCHES[:2])

    assert loss(model) < loss(made)
    assert loss(made) - loss(model) < 0.75 * (loss(nearest) - loss(model))
    made.save(tmp_path)
    assert torch.equal(logits(inc_torch.load(tmp_path, llama())), logits(made))
    assert all(parameter.grad is None for parameter in made.parameters())
    told = notes(made)
    assert told["model.layers.0.mlp.up_proj"] == "TEQ, its scale is in 'model.layers.0.post_attention_layernorm'"
    assert told["model.layers.0.self_attn.o_proj"] == ("TEQ, no scale" if folding else "TEQ, it scales its inputs")


def test_teq_keeps_no_scale_that_makes_the_loss_greater():
    model = trained(llama())
    recipes = {"teq_args": {"steps": 3, "lr": 50.0}}
    made = fit(model, rounding("TEQ", recipes=recipes, op_name_dict=FLOAT_HEAD), calib_dataloader=BATCHES[:2])
    nearest = fit(model, rounding("RTN", op_name_dict=FLOAT_HEAD))
    assert torch.equal(logits(made), logits(nearest))
    assert notes(made)["model.layers.0.mlp.up_proj"] == "TEQ, no scale"


def test_teq_in_a_loop_of_the_user():
    model = trained(llama())
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    seen = []

    def train(candidate):
        scales = [parameter for parameter in candidate.parameters() if parameter.requires_grad]
        seen.append(len(scales))
        optimizer = torch.optim.SGD(scales, 0.5)
        for batch in BATCHES[:2] * 3:
            candidate(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    config = rounding("TEQ", op_name_dict=FLOAT_HEAD)
    made = fit(model, config, calib_dataloader=BATCHES[:1], calib_func=train)
    assert seen == [6]  # of each block: the two norms and up_proj
    assert "its scale is in" in notes(made)["model.layers.1.mlp.gate_proj"]
    assert not frozen.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter is not frozen)


# ---------------------------------------------------------------------------- what is refused


def test_a_loop_that_trains_nothing_is_refused():
    with pytest.raises(ModelError, match=r"calib_func changed no scale: .* expected to train the model"):
        fit(llama(), rounding("TEQ"), calib_dataloader=BATCHES, calib_func=lambda model: model(**BATCHES[0]))


def test_a_model_without_a_loss_is_refused():
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8))
    with pytest.raises(ModelError, match=r"TEQ learns scales by a loss, and Sequential returns none.*calib_func"):
        fit(model, rounding("TEQ"), calib_dataloader=[torch.randn(4, 32)])


def test_teq_says_when_nothing_can_be_scaled():
    model = nn.Sequential(nn.Linear(32, 8))
    with pytest.warns(InexactWarning, match=r"TEQ finds no layer .* '0': no norm or layer feeds it directly"):
        made = fit(model, rounding("TEQ"), calib_dataloader=[torch.randn(4, 32)])
    assert isinstance(made[0], WeightOnlyLinear)


def test_awq_needs_blocks():
    model = nn.Sequential(nn.Linear(32, 8))
    with pytest.raises(ModelError, match="AWQ rounds a transformer block by block, and Sequential has no blocks"):
        fit(model, rounding("AWQ"), calib_dataloader=[torch.randn(4, 32)])


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ({"awq_args": {"foldng": True}}, "Did you mean 'folding'"),
        ({"teq_args": {"steps": 0}}, "expected a number of optimizer steps above 0"),
        ({"teq_args": {"lr": -1.0}}, "expected a learning rate above 0"),
    ],
)
def test_wrong_arguments_are_named(recipes, words):
    with pytest.raises(ConfigError, match=words):
        rounding("AWQ", recipes=recipes)


def test_autoround_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="AutoRound is a package of its own: take GPTQ or AWQ"):
        rounding("AUTOROUND")


def test_inputs_of_other_types_are_scaled_in_theirs():
    made = fit(outlying(llama()), rounding("AWQ"), calib_dataloader=BATCHES)
    layer = made.model.layers[0].self_attn.o_proj
    inputs = torch.randn(3, 32)
    expected = layer(inputs)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(inputs.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(expected, (inputs * layer.input_factor) @ layer.weight.T)


def test_folded_models_are_packed_for_others_and_those_with_factors_are_refused(tmp_path):
    model = outlying(llama(num_key_value_heads=4))
    folded = rounding("AWQ", bits=4, group=32, op_name_dict=FLOAT_HEAD, recipes={"awq_args": {"folding": True}})
    made = fit(model, folded, calib_dataloader=BATCHES)
    save_for_huggingface_upstream(made, None, tmp_path, quant_method="gptq")
    torch.testing.assert_close(logits(OptimizedModel.from_pretrained(tmp_path)), logits(made), rtol=0, atol=5e-3)
    own = fit(model, rounding("AWQ", bits=4, group=32, op_name_dict=FLOAT_HEAD), calib_dataloader=BATCHES)
    with pytest.raises(ModelError, match=r"o_proj'.*multiplied with a factor.*'folding': True"):
        own.export_compressed_model()


def test_a_search_chooses_between_algorithms():
    """AWQ is the second choice, and nothing but it meets the goal."""
    model = outlying(llama())
    reference, nearest = logits(model), fit(model, rounding("RTN", op_name_dict=FLOAT_HEAD))
    limit = 0.9 * error(nearest, model)

    def closeness(candidate):
        return 1.0 if candidate is model or (logits(candidate) - reference).square().mean() < limit else 0.5

    conf = rounding(["RTN", "AWQ"], op_name_dict=FLOAT_HEAD)
    made = fit(model, conf, calib_dataloader=BATCHES, eval_func=closeness)
    assert "AWQ, 1024 tokens" in notes(made)["model.layers.0.mlp.up_proj"]
    assert error(made, model) < limit
