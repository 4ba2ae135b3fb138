"""Losses that are dropped, configs that are assigned to, hooks by old names, and what is told of loops."""

from __future__ import annotations

import pytest

from inc_torch.migrate import migrate_source

MADE = """\
from inc_torch import DistillationConfig, PostTrainingQuantConfig, TuningCriterion, prepare_compression
manager = prepare_compression(model, conf)
manager.on_train_begin()
"""
STEP = """\
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
manager.on_train_end()
"""


def rewritten(text):
    return migrate_source(text).text


def told(text):
    return [(finding.line, finding.why, finding.todo) for finding in migrate_source(text).findings]


# ------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("backward", ["loss.backward()", "accelerator.backward(loss)", "scaler.scale(loss).backward()"])
def test_a_dropped_loss_is_kept(backward):
    loop = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    loss = model(x)\n"
        f"    manager.on_after_compute_loss(x, out, loss)  # the teacher\n    {backward}\n{STEP}"
    )
    kept = loop.replace("    manager.on_after_compute", "    loss = manager.on_after_compute")
    assert rewritten(loop) == kept
    assert told(loop) == told(kept) == []


def test_a_dropped_loss_without_a_name_is_told():
    loop = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n"
        f"    manager.on_after_compute_loss(x, out, out.loss)\n    out.loss.backward()\n{STEP}"
    )
    assert rewritten(loop) == loop
    assert [(line, why) for line, why, _ in told(loop)] == [(6, "the loss that it returns is dropped")]


def test_a_dropped_loss_that_backward_does_not_begin_with_is_told():
    loop = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    loss = model(x)\n"
        f"    manager.on_after_compute_loss(x, out, loss)\n    total.backward()\n{STEP}"
    )
    assert rewritten(loop) == loop
    assert [(line, why) for line, why, _ in told(loop)] == [(7, "the loss that it returns is dropped")]


def test_a_loss_that_goes_nowhere_is_told():
    loop = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    loss = model(x)\n"
        f"    new_loss = manager.on_after_compute_loss(x, out, loss)\n    loss.backward()\n{STEP}"
    )
    assert [(line, why) for line, why, _ in told(loop)] == [
        (7, "'new_loss' is not used, so the teacher has no part in the training")
    ]
    assert told(loop.replace("loss.backward", "new_loss.backward")) == []


def test_a_distilling_loop_without_the_hook_is_told():
    loop = (
        "from inc_torch import DistillationConfig, WeightPruningConfig, prepare_compression\n"
        "d = DistillationConfig(t)\nconfs = [d]\n"
        "manager = prepare_compression(model, confs)\nmanager.on_train_begin()\n"
        f"for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    model(x).backward()\n{STEP}"
    )
    assert [(line, why) for line, why, _ in told(loop)] == [
        (10, "'manager' distils, and the loop does not give it the loss")
    ]
    assert told(loop.replace("DistillationConfig(t)", "WeightPruningConfig()")) == []


# ------------------------------------------------------------------------------ configs


CONF = "from inc_torch.config import PostTrainingQuantConfig\nconf = PostTrainingQuantConfig()\n"


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("conf.approach = 'dynamic'  # why", "conf = conf.replace(approach='dynamic')  # why"),
        ("conf.calibration_sampling_size = 1, 2", "conf = conf.replace(calibration_sampling_size=(1, 2))"),
        (
            "conf.tuning_criterion.max_trials = 5",
            "conf = conf.replace(tuning_criterion=conf.tuning_criterion.replace(max_trials=5))",
        ),
        ("conf.op_type_dict = {\n    'a': 1,\n}", "conf = conf.replace(op_type_dict={\n    'a': 1,\n})"),
    ],
)
def test_assignments_to_a_config_make_a_copy(line, changed):
    assert rewritten(f"{CONF}{line}\n") == f"{CONF}{changed}\n"
    assert told(f"{CONF}{line}\n") == told(f"{CONF}{changed}\n") == []


@pytest.mark.parametrize(
    "lines",
    [
        "job = Job(conf)\nconf.approach = 'dynamic'\n",
        "def f():\n    conf.approach = 'dynamic'\n",
        "conf.quant_level += 1\n",
        "conf.no_such_option = 1\n",
    ],
)
def test_assignments_that_others_may_see_are_told(lines):
    assert rewritten(CONF + lines) == CONF + lines
    ((_, why, todo),) = told(CONF + lines)
    assert why.startswith("a PostTrainingQuantConfig is read-only")
    assert todo == "Make a changed copy: conf = conf.replace(...)."


def test_assignments_to_other_objects_are_left_alone():
    text = "from inc_torch import WeightPruningConfig\nconf = load()\nconf.pattern = '4x1'\nx.conf.pattern = 1\n"
    assert rewritten(text) == text
    assert told(text) == []


def test_options_that_inc_swallowed_are_told():
    text = "from inc_torch import WeightPruningConfig as W\nconf = W(target_sparsty=0.9, pattern='1x1')\n"
    ((line, why, todo),) = told(text)
    assert (line, why) == (2, "WeightPruningConfig has no option 'target_sparsty', and INC ignored it")
    assert todo == "Did you mean 'target_sparsity'?"


# ------------------------------------------------------------------------------ hooks


def test_old_names_of_hooks():
    text = (
        "from neural_compressor.training import prepare_compression\nm = prepare_compression(model, conf)\n"
        "m.pre_epoch_begin()\nm.callbacks.on_batch_begin(0)\nm.on_post_grad()\nm.on_batch_end()\nm.post_epoch_end()\n"
    )
    assert rewritten(text).partition("conf)\n")[2] == (
        "m.on_train_begin()\nm.callbacks.on_step_begin(0)\nm.on_before_optimizer_step()\nm.on_step_end()\n"
        "m.on_train_end()\n"
    )


def test_old_names_on_unknown_objects_are_told():
    text = f"{MADE}other.on_batch_begin(0)\nmanager.on_train_end()\nmanager.on_post_forward(x)\n"
    assert rewritten(text) == text
    assert told(text) == [
        (4, "it is not known what 'other' is", "If it is INC's object, the hook is on_step_begin."),
        (
            6,
            "on_post_forward was taken out in INC already",
            "Call loss = X.on_after_compute_loss(inputs, outputs, loss) before backward.",
        ),
    ]


LOOP = "for i, x in enumerate(data):\n    loss(model(x)).backward()\n    optimizer.step()\n"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (
            f"def train(model):\n    {LOOP.replace(chr(10), chr(10) + '    ')}\n{MADE}train(model)\n",
            4,
            "this loop calls no hook, and it is not known whether it trains the model of 'manager'",
        ),
        (
            f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    loss(model(x)).backward()\n"
            "    optimizer.step()\n    other_optimizer.step()\nmanager.on_train_end()\n",
            7,
            "several optimizers step in this loop, and it is not known which has the compressed weights",
        ),
        (
            f"{MADE}while data:\n    loss(model(data.pop())).backward()\n"
            "    manager.on_before_optimizer_step()\n    optimizer.step()\n    manager.on_after_optimizer_step()\n"
            "manager.on_train_end()\n",
            7,
            "no loop was found whose batches are counted",
        ),
        (
            f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n"
            "    manager.on_before_optimizer_step()\n    optimizer.step(closure)\n    model(x).backward()\n"
            "manager.on_train_end()\n".replace("    manager.on_before_optimizer_step()\n", ""),
            6,
            "the closure computes the gradients inside of the step",
        ),
        (
            "from inc_torch import prepare_compression\n"
            "def run(model):\n    manager = prepare_compression(model, conf)\n    for i, x in enumerate(data):\n"
            "        manager.on_step_begin(i)\n        model(x).backward()\n"
            "        manager.on_before_optimizer_step()\n"
            "        optimizer.step()\n        manager.on_after_optimizer_step()\n        if i == 5:\n"
            "            return model\n",
            8,
            "the loop may be left by a return",
        ),
        (
            "from inc_torch import prepare_compression\n"
            "def epoch(manager):\n    for i, x in enumerate(data):\n        manager.on_step_begin(i)\n"
            "        model(x).backward()\n        manager.on_before_optimizer_step()\n        optimizer.step()\n"
            "        manager.on_after_optimizer_step()\n"
            "manager = prepare_compression(model, conf)\nfor _ in range(3):\n    epoch(manager)\n",
            7,
            "it is not known where the whole training begins and ends",
        ),
        (
            "# neural_compressor\ndef train(manager):\n    for i, x in enumerate(data):\n        model(x).backward()\n"
            "        manager.on_before_optimizer_step()\n        optimizer.step()\n",
            6,
            "it is not known what 'manager' is",
        ),
    ],
)
def test_loops_that_are_not_decided(text, line, why):
    assert {(found, reason) for found, reason, _ in told(text)} == {(line, why)}
    assert why in {reason for _, reason, _ in told(rewritten(text))} or "closure" in why or "return" in why


def test_a_loop_before_the_manager_is_left_alone():
    text = f"{LOOP}{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    model(x).backward()\n{STEP}"
    assert rewritten(text) == text
    assert told(text) == []


def test_a_training_that_fit_drives_needs_no_hooks():
    text = (
        "from inc_torch import prepare_compression, training\ndef train(model):\n    for i, x in enumerate(data):\n"
        "        model(x).backward()\n        optimizer.step()\n"
        "manager = prepare_compression(model, conf)\nq = training.fit(manager, train)\n"
    )
    assert rewritten(text) == text
    assert told(text) == []


def test_steps_on_one_line_get_their_hooks_there():
    text = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i); model(x).backward()\n"
        "    if i % 2: optimizer.step(); optimizer.zero_grad()\nmanager.on_train_end()\n"
    )
    assert (
        "    if i % 2: manager.on_before_optimizer_step(); optimizer.step(); manager.on_after_optimizer_step(); "
        in (rewritten(text))
    )
    assert told(text) == []


def test_a_loop_that_does_not_count_gets_a_counter():
    text = f"{MADE}for x, y in data: # each\n    model(x).backward()\n{STEP}"
    assert rewritten(text) == (
        f"{MADE}for batch_id, (x, y) in enumerate(data): # each\n    manager.on_step_begin(batch_id)\n"
        f"    model(x).backward()\n{STEP}"
    )


def test_schedulers_are_no_optimizers():
    hooks = "    manager.on_before_optimizer_step()\n    optimizer.step()\n    manager.on_after_optimizer_step()\n"
    text = (
        f"{MADE}for i, x in enumerate(data):\n    manager.on_step_begin(i)\n    model(x).backward()\n"
        "    optimizer.step()\n    lr_scheduler.step()\n    optimizer_schedule.step()\nmanager.on_train_end()\n"
    )
    assert rewritten(text) == text.replace("    optimizer.step()\n", hooks)
    assert told(text) == []


def test_a_name_that_is_something_else_too_is_not_taken_for_a_manager():
    text = (
        "from inc_torch import prepare_compression\nmanager = prepare_compression(model, conf)\n"
        "manager = Other()\nfor i, x in enumerate(data):\n    model(x).backward()\n"
        "    manager.on_before_optimizer_step()\n    optimizer.step()\n"
    )
    assert rewritten(text) == text
    assert [(line, why) for line, why, _ in told(text)] == [(7, "it is not known what 'manager' is")]
