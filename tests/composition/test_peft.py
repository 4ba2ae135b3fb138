"""PEFT models in hand-written loops: the base is compressed under LoRA adapters, and exported with them merged."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from inc_torch import (
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
    save_for_huggingface_upstream,
)
from inc_torch.core.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks

STEPS = 6
SMALL = {"vocab_size": 40, "tie_word_embeddings": False}
IDS = torch.arange(32).view(4, 8) * 7 % 40


def bert(**options):
    """Adapters on some layers only, dropout, and a head that is trained itself."""
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **SMALL,
    )
    options = {
        "target_modules": ["query", "value", "output.dense"],
        "lora_dropout": 0.1,
        "task_type": "SEQ_CLS",
    } | options
    return BertForSequenceClassification(config), LoraConfig(r=2, **options)


def gpt2(**options):
    """Transposed weights, and an output layer that is tied to the embedding."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **SMALL | {"tie_word_embeddings": True}, **ends)
    options = {
        "target_modules": ["c_attn", "c_proj", "c_fc"],
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
    } | options
    return GPT2LMHeadModel(config), LoraConfig(r=2, **options)


def llama(**options):
    """No biases, adapters everywhere, also on the embedding."""
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **SMALL,
    )
    targets = [*("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "embed_tokens"]
    return LlamaForCausalLM(config), LoraConfig(
        **{"r": 2, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
    )


def adapted(make, **options):
    torch.manual_seed(0)
    model, config = make(**options)
    return get_peft_model(model, config)


def pruning(**options):
    options = {
        "pruning_type": "magnitude",
        "pattern": "2x1",
        "target_sparsity": 0.5,
        "start_step": 1,
        "end_step": 4,
    } | options
    return WeightPruningConfig(pruning_op_types=["Linear", "Conv1D"], **options)


def confs_of(letters, **options):
    return [{"p": pruning(**options), "q": QuantizationAwareTrainingConfig()}[letter] for letter in letters]


class Run:
    """A loop over steps with two micro-batches, that can be cut after any of them."""

    def __init__(self, model, confs):
        self.model, self.manager = model, prepare_compression(model, confs)
        # Of all parameters, as most scripts have it: those of the base are frozen and have no gradient.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        self.losses = []

    def go(self, start=0, stop=STEPS):
        manager = self.manager
        manager.on_train_begin()
        self.model.train()
        for step in range(start, stop):
            for ids in (IDS[:2], IDS[2:].flip(1)):
                manager.on_step_begin(step)
                labels = ids if self.model.peft_config["default"].task_type == "CAUSAL_LM" else ids[:, 0] % 2
                output = self.model(input_ids=ids, labels=labels)
                loss = manager.on_after_compute_loss(None, output, output.loss)
                loss.backward()
                manager.on_step_end()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            manager.on_before_optimizer_step()
            self.optimizer.step()
            manager.on_after_optimizer_step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
        self.model.eval()

    def save(self, directory):
        """A checkpoint as the Trainer writes it: of the model only the adapter."""
        self.model.save_pretrained(directory)
        parts = {"optimizer": self.optimizer.state_dict(), "manager": self.manager.state_dict()}
        torch.save(parts, directory / "state.pt")

    def load(self, directory):
        self.model.load_adapter(directory, "default", is_trainable=True)
        parts = torch.load(directory / "state.pt", weights_only=True)
        self.optimizer.load_state_dict(parts["optimizer"])
        self.manager.load_state_dict(parts["manager"])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def base_weights(model):
    return {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}


@pytest.mark.parametrize("letters", ["p", "q", "pq"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_from_the_first_step_to_the_hub(make, letters, tmp_path):
    model = adapted(make)
    inner, before = model.get_base_model(), base_weights(model)
    names = [name for name, _ in make()[0].named_modules()]
    run = Run(model, confs_of(letters))
    run.go()
    assert run.manager.callbacks.progress.step == STEPS
    for name, weight in base_weights(model).items():
        assert torch.equal(weight, before[name] * (weight != 0) if "p" in letters else before[name]), name
    adapters = [weight for name, weight in model.named_parameters() if "lora_" in name]
    assert all(weight.count_nonzero() for weight in adapters)
    with pytest.raises(ModelError, match="still has adapters of PEFT, which from_pretrained would not find"):
        save_for_huggingface_upstream(run.manager, None, tmp_path / "early")
    trained = logits(model)
    zeros = {row.name: row.zeros for row in run.manager.report().modules if row.pattern}

    run.manager.on_train_end()
    report = run.manager.report()
    assert torch.allclose(logits(model), trained, atol=2e-6)
    if letters == "p":
        assert torch.equal(logits(model), trained)
    for row in report.modules:
        if row.pattern:
            assert row.zeros >= zeros[row.name] > 0
        if row.scheme:
            assert row.bits == 8
    assert [name for name, _ in inner.named_modules()] == names
    assert torch.equal(logits(model), logits(inner))
    assert not hasattr(inner, "peft_config")

    auto = AutoModelForSequenceClassification if make is bert else AutoModelForCausalLM
    for index, what in enumerate((run.manager, model, inner)):
        save_for_huggingface_upstream(what, None, tmp_path / str(index))
        loaded = auto.from_pretrained(tmp_path / str(index)).eval()
        assert torch.equal(logits(loaded), logits(model))
    model.save_pretrained(tmp_path / "by peft")
    assert not list((tmp_path / "by peft").glob("adapter*"))
    assert torch.equal(logits(auto.from_pretrained(tmp_path / "by peft").eval()), logits(model))
    assert model.merge_and_unload() is inner


def cut_and_uncut(make, confs, cut, directory):
    """Two runs that end alike: one from a checkpoint of the adapter and of nothing else of the model."""
    uncut, first, second = (Run(adapted(make), confs()) for _ in range(3))
    torch.manual_seed(1)
    uncut.go()
    torch.manual_seed(1)
    first.go(stop=cut)
    first.save(directory)
    second.load(directory)
    second.go(cut)
    assert first.losses + second.losses == uncut.losses
    for (name, weight), other in zip(uncut.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for run in (uncut, second):
        run.manager.on_train_end()
    assert torch.equal(logits(second.model), logits(uncut.model))
    return second, uncut


@pytest.mark.parametrize("letters", ["p", "q", "pq"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_goes_on_bit_for_bit_from_the_adapter_alone(cut, letters, tmp_path):
    cut_and_uncut(bert, lambda: confs_of(letters), cut, tmp_path)


def test_checkpointing_of_activations_changes_nothing():
    plain, checkpointed = (Run(adapted(llama), confs_of("pq")) for _ in range(2))
    plain.go()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpointed.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed.go()
    assert checkpointed.losses == plain.losses


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
@pytest.mark.parametrize("letters", ["p", "pq"])
def test_a_copy_of_the_embedding_that_was_trained_is_not_tied_again(letters, tmp_path):
    run = Run(adapted(gpt2, modules_to_save=["lm_head"]), confs_of(letters))
    run.go()
    run.manager.on_train_end()
    inner = run.model.get_base_model()
    assert not torch.equal(inner.lm_head.weight, inner.transformer.wte.weight)
    assert not inner.config.tie_word_embeddings
    save_for_huggingface_upstream(run.manager, None, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(run.model))


def test_adapters_that_transformers_put_in_itself(tmp_path):
    """Without a PeftModel around the model."""
    torch.manual_seed(0)
    model, config = llama()
    model.add_adapter(config)
    model.peft_config = {"default": config}
    run = Run(model, confs_of("pq"))
    run.go()
    trained = logits(model)
    run.manager.on_train_end()
    torch.testing.assert_close(logits(model), trained, atol=2e-6, rtol=0)
    save_for_huggingface_upstream(run.manager, None, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


def test_the_model_around_it_can_be_copied_and_stored():
    run = Run(adapted(bert), confs_of("p"))
    run.go(stop=3)
    file = io.BytesIO()
    torch.save(run.model, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False)), logits(run.model))
    run.go(start=3)
    run.manager.on_train_end()
    again = copy.deepcopy(run.model)
    assert isinstance(again, PeftModel)
    assert again.save_pretrained.__self__ is again.merge_and_unload() is again.get_base_model()


def test_without_compression_peft_is_left_alone(tmp_path):
    model, (teacher, _) = adapted(bert), bert()
    kinds = [type(module) for module in model.modules() if hasattr(module, "base_layer")]
    run = Run(model, [DistillationConfig(teacher, KnowledgeDistillationLossConfig())])
    run.manager.on_train_begin()
    run.manager.on_train_end()
    assert [type(module) for module in model.modules() if hasattr(module, "base_layer")] == kinds
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
