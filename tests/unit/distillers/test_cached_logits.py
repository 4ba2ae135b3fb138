"""Logits of a teacher on disk: what comes back, from which folder, and how a loop uses it."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from inc_torch import DistillationConfig, KnowledgeDistillationLossConfig, prepare_compression
from inc_torch.core.errors import ArtifactError, ConfigError, ModelError
from inc_torch.distillers import cached_logits
from inc_torch.distillers.cached_logits import CachedLogits, WithTeacherLogits, cache_teacher_logits

VOCABULARY = 11


class Tokens(nn.Module):
    """Logits of each token, which do not depend on its neighbours."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.table(input_ids) + 0 * attention_mask.unsqueeze(-1)}


@pytest.fixture
def teacher():
    return nn.Linear(4, 10)


@pytest.fixture
def inputs():
    return torch.randn(23, 4)


@pytest.fixture
def exact(teacher, inputs):
    """The logits, batch by batch: another size of batch may round in another way."""
    return torch.cat([teacher(batch) for batch in inputs.split(5)]).detach()


def _cache(teacher, inputs, tmp_path, **options):
    return cache_teacher_logits(teacher, DataLoader(inputs, batch_size=5), tmp_path / "logits", **options)


def test_all_logits_come_back(teacher, inputs, exact, tmp_path):
    cache = _cache(teacher, inputs, tmp_path, dtype=torch.float32)
    assert len(cache) == 23
    assert torch.equal(torch.stack(list(cache)), exact)
    assert torch.equal(cache[-1], cache[22])
    assert torch.equal(cache.batch([3, 1]), exact[[3, 1]])
    assert torch.equal(torch.stack(cache[2:4]), exact[2:4])
    assert [path.name for path in tmp_path.iterdir()] == ["logits"]
    with pytest.raises(IndexError, match="There is no sample 23 among the 23"):
        cache[23]


def test_half_the_digits_by_default(teacher, inputs, tmp_path):
    cache = _cache(teacher, inputs, tmp_path)
    torch.testing.assert_close(torch.stack(list(cache)), teacher(inputs).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_the_largest_keep_their_probability_and_the_rest_share(teacher, inputs, exact, tmp_path, top_k):
    cache = _cache(teacher, inputs, tmp_path, top_k=top_k, dtype=torch.float32)
    probabilities, exact = torch.stack(list(cache)).softmax(-1), exact.softmax(-1)
    kept = exact.topk(top_k).indices
    torch.testing.assert_close(probabilities.gather(1, kept), exact.gather(1, kept))
    others = torch.ones_like(exact, dtype=torch.bool).scatter(1, kept, False)
    share = (1 - exact.gather(1, kept).sum(1)) / (10 - top_k)
    torch.testing.assert_close(probabilities[others].view(23, -1), share.unsqueeze(1).expand(-1, 10 - top_k))


def test_shards_are_cut_and_found(teacher, inputs, exact, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_logits, "_SHARD_VALUES", 80)
    cache = _cache(teacher, inputs, tmp_path, dtype=torch.float32)
    assert len(list((tmp_path / "logits").glob("*.safetensors"))) == 3
    assert torch.equal(torch.stack(list(cache)), exact)
    assert torch.equal(torch.stack(list(CachedLogits(tmp_path / "logits"))), exact)


def _padded(ids, side):
    length = max(map(len, ids))
    rows, masks = [], []
    for one in ids:
        padding = [0] * (length - len(one))
        rows.append(one + padding if side == "right" else padding + one)
        masks.append([1] * len(one) + padding if side == "right" else padding + [1] * len(one))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("top_k", [None, 4])
def test_sequences_are_found_however_they_are_padded(tmp_path, side, top_k):
    teacher, ids = Tokens(), [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    batches = [_padded(ids[:2], "right"), _padded(ids[2:], "right")]
    cache = cache_teacher_logits(teacher, batches, tmp_path / "logits", top_k=top_k, dtype=torch.float32)
    assert [len(logits) for logits in cache] == [3, 1, 2, 4]
    batch = _padded([ids[3], ids[1]], side)
    got = cache.batch(torch.tensor([3, 1]), batch["attention_mask"])
    real = batch["attention_mask"] != 0
    assert (got[~real] == 0).all()
    expected = teacher(**batch)["logits"]
    torch.testing.assert_close(got[real].argmax(-1), expected[real].argmax(-1))
    if top_k is None:
        assert torch.equal(got[real], expected[real])
        assert torch.equal(cache.batch([1, 0]), _at_the_left(teacher, ids))
    with pytest.raises(ModelError, match="Sample 0 has 4 real positions in this batch, and had 3"):
        cache.batch([0, 1], batch["attention_mask"])


def _at_the_left(teacher, ids):
    batch = _padded([ids[1], ids[0]], "right")
    return teacher(**batch)["logits"] * batch["attention_mask"].unsqueeze(-1)


def test_a_data_set_brings_them_along(teacher, inputs, exact, tmp_path):
    cache, labels = _cache(teacher, inputs, tmp_path, dtype=torch.float32), torch.arange(23)
    of_tuples = WithTeacherLogits(TensorDataset(inputs, labels), cache)
    assert len(of_tuples) == 23
    x, label, logits = of_tuples[4]
    assert (label, torch.equal(x, inputs[4]), torch.equal(logits, exact[4])) == (4, True, True)
    of_dicts = WithTeacherLogits([{"x": x} for x in inputs], cache)
    assert torch.equal(of_dicts[4]["teacher_logits"], cache[4])
    assert torch.equal(WithTeacherLogits(inputs, cache)[4][1], cache[4])
    with pytest.raises(ConfigError, match="There are 23 teacher logits for 22 samples"):
        WithTeacherLogits(inputs[:22], cache)


def test_a_loop_without_the_teacher_is_the_loop_with_it(teacher, inputs, tmp_path):
    cache = _cache(teacher, inputs, tmp_path, dtype=torch.float32)
    loader = DataLoader(WithTeacherLogits([{"x": x} for x in inputs], cache), batch_size=8)
    student, criterion = nn.Linear(4, 10), KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.0, 1.0])
    values = []
    for conf in (DistillationConfig(criterion=criterion), DistillationConfig(teacher, criterion)):
        manager = prepare_compression(student, conf)
        manager.on_train_begin()
        for batch in loader:
            shown = batch if conf.teacher_model is None else batch["x"]
            values.append(manager.on_after_compute_loss(shown, student(batch["x"]), 0.0))
        manager.on_train_end()
    torch.testing.assert_close(values[:3], values[3:])


# ---------------------------------------------------------------------------- what is refused


def test_a_shuffled_loader_is_refused(teacher, inputs, tmp_path):
    with pytest.raises(ConfigError, match=r"DataLoader with RandomSampler: expected one that keeps the order"):
        cache_teacher_logits(teacher, DataLoader(inputs, shuffle=True), tmp_path / "logits")


@pytest.mark.parametrize("top_k", [0, 10, -1])
def test_a_wrong_number_is_refused(teacher, inputs, tmp_path, top_k):
    with pytest.raises(ConfigError, match=rf"top_k={top_k} for a teacher with 10 classes: expected a number from 1"):
        _cache(teacher, inputs, tmp_path, top_k=top_k)
    assert not (tmp_path / "logits").exists()


def test_nothing_is_overwritten(teacher, inputs, tmp_path):
    _cache(teacher, inputs, tmp_path)
    with pytest.raises(ConfigError, match="which is there: give another folder, or delete it"):
        _cache(teacher, inputs, tmp_path)


def test_no_batch_is_refused(teacher, tmp_path):
    with pytest.raises(ModelError, match="got no batch"):
        cache_teacher_logits(teacher, iter(()), tmp_path / "logits")


def test_a_teacher_that_fails_leaves_no_folder_to_be_taken_for_whole(teacher, inputs, tmp_path):
    with pytest.raises(RuntimeError):
        cache_teacher_logits(teacher, [inputs[:5], inputs[:5, :3]], tmp_path / "logits")
    assert not (tmp_path / "logits").exists()
    assert len(_cache(teacher, inputs, tmp_path)) == 23  # what is left of the attempt does not stand in the way


def test_damaged_folders_are_refused(teacher, inputs, tmp_path):
    with pytest.raises(ArtifactError, match="holds no teacher logits"):
        CachedLogits(tmp_path / "nowhere")
    folder = _cache(teacher, inputs, tmp_path).folder
    shard = folder / "logits-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="cannot be read"):
        CachedLogits(folder)[0]
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"lacks 'logits-00000\.safetensors'"):
        CachedLogits(folder)
    index = json.loads((folder / "index.json").read_text())
    for changes in ({"format": "inc_torch/teacher_logits/2"}, {"more": 1}):
        (folder / "index.json").write_text(json.dumps(index | changes))
        with pytest.raises(ArtifactError, match="is no index of teacher logits of this version"):
            CachedLogits(folder)
    (folder / "index.json").write_text(json.dumps(index | {"shards": [["../../secret", 23]]}))
    with pytest.raises(ArtifactError, match=r"lacks '\.\./\.\./secret'"):
        CachedLogits(folder)


def test_certain_teachers_leave_nothing_to_share(tmp_path):
    certain = torch.full((2, 3), -math.inf)
    certain[:, 1] = 0.0
    cache = cache_teacher_logits(nn.Identity(), [certain], tmp_path / "logits", top_k=1)
    assert torch.equal(cache[0].softmax(-1), torch.tensor([0.0, 1.0, 0.0]))
    value = F.cross_entropy(torch.zeros(1, 3), cache[0].softmax(-1).unsqueeze(0))
    torch.testing.assert_close(value, torch.tensor(math.log(3)))
