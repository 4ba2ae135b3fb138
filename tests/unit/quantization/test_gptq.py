"""GPTQ through `quantization.fit`: better than rounding to the nearest, kept in files, refused where it cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import inc_torch
from inc_torch import PostTrainingQuantConfig, TuningCriterion, save_for_huggingface_upstream
from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, ModelError
from inc_torch.quantization import fit
from inc_torch.quantizers import WeightOnlyLinear
from tests.support.language_models import BATCHES, FLOAT_HEAD, error, gpt2, llama, logits, rounding


def config(algorithm="GPTQ", **options):
    return rounding(algorithm, **options)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("settings", [{}, {"act_order": True}, {"act_order": True, "static_groups": True}], ids=str)
def test_it_is_nearer_than_rounding_to_the_nearest(make, scheme, settings, tmp_path):
    model = make()
    before = copy.deepcopy(model.state_dict())
    nearest = fit(model, config("RTN", scheme=scheme, op_name_dict=FLOAT_HEAD), calib_dataloader=BATCHES)
    gptq = config(scheme=scheme, op_name_dict=FLOAT_HEAD, recipes={"gptq_args": settings})
    made = fit(model, gptq, calib_dataloader=BATCHES)
    assert error(made, model) < 0.85 * error(nearest, model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)  # the user's model stays
    made.save(tmp_path / "own")
    assert torch.equal(logits(inc_torch.load(tmp_path / "own", make())), logits(made))
    layers = [module for module in made.modules() if isinstance(module, WeightOnlyLinear)]
    reordered = [layer.g_idx is not None for layer in layers]
    assert any(reordered) == (settings == {"act_order": True})
    save_for_huggingface_upstream(made, None, tmp_path / "hub")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hub")), logits(made))


def test_codes_from_a_table_are_nearer_too(tmp_path):
    model, head = llama(), {"lm_head": {"weight": {"dtype": "fp32"}}}

    def made_by(algorithm):
        weight = {"dtype": "nf4", "group_size": 16, "algorithm": algorithm}
        rules = {"op_type_dict": {".*": {"weight": weight}}, "op_name_dict": head}
        return fit(model, PostTrainingQuantConfig(approach="weight_only", **rules), calib_dataloader=BATCHES)

    made = made_by("GPTQ")
    assert error(made, model) < 0.85 * error(made_by("RTN"), model)
    assert made.model.layers[0].mlp.up_proj.scheme == "nf4-g16"
    made.save(tmp_path)
    assert torch.equal(logits(inc_torch.load(tmp_path, llama())), logits(made))


def test_later_blocks_are_rounded_for_what_the_earlier_ones_make():
    """With one block in float, the other one sees float inputs, and gets other codes."""
    model = llama()
    whole = fit(model, config(), calib_dataloader=BATCHES)
    rules = {"model.layers.0.*": {"weight": {"dtype": "fp32"}}}
    second = fit(model, config(op_name_dict=rules), calib_dataloader=BATCHES)
    assert isinstance(second.model.layers[0].mlp.up_proj, nn.Linear)
    ours, theirs = (made.model.layers[1].mlp.down_proj.qweight for made in (whole, second))
    assert not torch.equal(ours, theirs)


def test_layers_outside_of_blocks_are_rounded_to_the_nearest_and_that_is_said():
    model = llama()
    made = fit(model, config(), calib_dataloader=BATCHES)
    nearest = fit(model, config("RTN"), calib_dataloader=BATCHES)
    assert torch.equal(made.lm_head.qweight, nearest.lm_head.qweight)
    notes = {row.name: " ".join(row.notes) for row in made.report().modules}
    assert "in none of the blocks" in notes["lm_head"]
    assert "GPTQ, 1024 tokens" in notes["model.layers.0.mlp.up_proj"]


def test_only_so_many_samples_are_run():
    taken = []

    def batches():
        for batch in BATCHES:
            taken.append(len(batch["input_ids"]))
            yield batch

    made = fit(llama(), config(recipes={"gptq_args": {"nsamples": 20}}), calib_dataloader=batches())
    assert taken == [8, 8, 8]
    notes = {row.name: " ".join(row.notes) for row in made.report().modules}
    assert "GPTQ, 384 tokens" in notes["model.layers.0.mlp.up_proj"]


def test_a_search_makes_it_again_for_each_trial():
    model = llama()
    reference = logits(model)

    def closeness(candidate):
        return -(logits(candidate) - reference).square().mean().item()

    conf = config(
        tuning_criterion=TuningCriterion(max_trials=2, strategy="basic"),
        accuracy_criterion=inc_torch.config.AccuracyCriterion(criterion="absolute", tolerable_loss=1.0),
    )
    made = fit(model, conf, calib_dataloader=BATCHES, eval_func=closeness)
    assert isinstance(made.model.layers[0].mlp.up_proj, WeightOnlyLinear)
    nearest = fit(model, config("RTN"), calib_dataloader=BATCHES)
    assert error(made, model) < error(nearest, model)


@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_a_pruned_model_keeps_its_zeros_and_is_no_worse_than_by_rounding_to_the_nearest(scheme):
    model = llama()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in names}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight[torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.8] = 0
    made = fit(model, config(scheme=scheme), calib_dataloader=BATCHES)
    nearest = fit(model, config("RTN", scheme=scheme), calib_dataloader=BATCHES)
    for name, layer in layers.items():
        assert (made.get_submodule(name).signed_codes()[layer.weight == 0] == 0).all()
    assert error(made, model) <= 1.02 * error(nearest, model)
    notes = [" ".join(row.notes) for row in made.report().modules if row.name in layers]
    assert any("rounded to the nearest, which changes its outputs less" in note for note in notes) or scheme == "asym"


# ---------------------------------------------------------------------------- what is refused


def test_without_data_it_is_refused():
    with pytest.raises(
        CalibrationError, match=r"GPTQ, AWQ and TEQ round weights for the inputs.*expected a calib_dataloader"
    ):
        fit(llama(), config())
    with pytest.raises(CalibrationError, match="yielded no sample"):
        fit(llama(), config(), calib_dataloader=[])


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ModelError, match=r"GPTQ rounds a transformer block by block, and Sequential has no blocks"):
        fit(model, config(), calib_dataloader=[torch.randn(4, 8)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"percdamp": 0}, r"gptq_args'\]\['percdamp'\]=0: expected a number above 0"),
        ({"pecdamp": 0.1}, "Did you mean 'percdamp'"),
        ({"block_size": 0}, "expected a number of columns above 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        config(recipes={"gptq_args": arguments})


def test_arguments_without_effect_are_told():
    conf = config(recipes={"gptq_args": {"true_sequential": True, "lm_head": True}})
    with pytest.warns(InexactWarning) as told:
        fit(llama(), conf, calib_dataloader=BATCHES)
    sequential, head = (str(warning.message) for warning in told)
    assert "true_sequential" in sequential
    assert "one and the same inputs" in sequential
    assert "lm_head" in head
    assert "rounded to the nearest" in head
