"""Distillation: the loss against torch by hand and its limit; whose teacher it is; resumed to the bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from timm.models import save_for_hf
from torch.nn import functional as F

from harness.config.compose import compose_run, compose_sweep
from harness.config.distill import SoftTargets
from harness.config.schema import EfficientNetLite0, ModelConfig, RunConfig, ScratchModel
from harness.errors import CheckpointError, ConfigError, ModelError, TrackingError
from harness.models import build_model
from harness.models.published import load_published
from harness.tracking import names
from harness.tracking.store import open_store
from harness.training.checkpoints.checkpoint import PREFIX, SECTION, ModelFacts, load_raw
from harness.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from harness.training.commands.dry_run import describe_run
from harness.training.flops import count_forward_flops, count_image_flops
from harness.training.image_views import needs_images, views_to_cache
from harness.training.module import ClassifierModule
from harness.training.teacher import Teacher, TeacherFacts, find_teacher, load_teacher, soften
from tests.training.conftest import stop_after

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
DIGITS = tuple("0123456789")
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TEACHERS = (3 * torch.randn(12, 5, generator=GENERATOR) for _ in range(2))
BIGGER = ScratchModel(kind="lenet", image_size=40, normalisation="half")  # the teacher: another size


def write_checkpoint(
    path: Path, model: ModelConfig = BIGGER, classes: tuple[str, ...] = DIGITS, seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    classifier = build_model(model, len(classes), load_weights=False)
    facts = ModelFacts(RunConfig(model=model).to_dict(), classes, (0.5,) * 3, (0.5,) * 3, "digits", "d1")
    state = {PREFIX + name: 2 * tensor for name, tensor in classifier.state_dict().items()}
    content = {"state_dict": state, SECTION: {**facts.to_dict(), "epoch": 0, "score": 0.5}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


@pytest.fixture
def teacher_run(made_store: None, tmp_path: Path) -> Path:
    """A run called "taught", with a checkpoint that a test may change."""
    path = write_checkpoint(tmp_path / "taught" / "best.ckpt")
    config = compose_run(["data=digits"])
    tags = {names.KIND: "train", names.CHECKPOINT: str(path)}
    tracker = open_store(config.tracking).start_run("taught", "digits", tags)
    tracker.log_summary({"best/val/accuracy": 0.75})
    tracker.finish("FINISHED")
    return path


def learning(*further: str, teacher: str = "taught") -> list[str]:
    return ["distill=soft_targets", f"distill.teacher={teacher}", *further]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_torchs_kl_div_and_the_formula(temperature: float) -> None:
    own, taught = (LOGITS / temperature).softmax(1), (TEACHERS / temperature).softmax(1)
    by_hand = temperature**2 * (taught * (taught.log() - own.log())).sum() / 12
    torchs = temperature**2 * F.kl_div(own.log(), taught, reduction="batchmean")
    assert torch.allclose(soften(LOGITS, TEACHERS, temperature), by_hand)
    assert torch.allclose(soften(LOGITS, TEACHERS, temperature), torchs)
    assert float(soften(LOGITS, LOGITS, temperature)) == pytest.approx(0.0, abs=1e-6)


def test_at_a_high_temperature_logits_are_matched() -> None:
    """The limit of Hinton et al., section 2.1: the gradient is (z - v) / K, both of mean 0."""
    logits = LOGITS.double().clone().requires_grad_(True)
    soften(logits.double(), TEACHERS, 1e3).backward()
    z, v = (one.double() - one.double().mean(1, keepdim=True) for one in (LOGITS, TEACHERS))
    assert logits.grad is not None
    torch.testing.assert_close(12 * logits.grad, (z - v) / 5, atol=5e-3, rtol=0)


def test_a_step_weighs_labels_and_teacher_on_the_same_mixed_images() -> None:
    """The teacher's classes lie in another order; it resizes and normalises the images itself."""
    config = compose_run(["data=digits", "model=lenet", "loss=focal", *learning("distill.weight=0.3")])
    assert isinstance(config.distill, SoftTargets)
    own, other = build_model(config.model, 5), build_model(BIGGER, 5)
    order = [3, 1, 4, 0, 2]
    teacher = Teacher(other.train(), order, config.distill, TeacherFacts("one"))
    module = ClassifierModule(own, config, facts=None, num_batches=1, teacher=teacher)  # type: ignore[arg-type]
    images, labels = torch.rand(12, 3, 32, 32), torch.rand(12, 5).softmax(1)
    with torch.no_grad():
        logits, taught = own(images), other(images)[:, order]
        plain = ClassifierModule(own, config, facts=None, num_batches=1)  # type: ignore[arg-type]
        expected = 0.7 * plain.training_step((images, labels), 0) + 0.3 * soften(logits, taught, 4.0)
    loss = module.training_step((images, labels), 0)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert not any(part.training for part in other.modules())
    assert {name.split(".")[0] for name in module.state_dict()} == {"classifier"}


def test_the_packaged_teacher_picks_the_runs_classes_by_name() -> None:
    config = compose_run(["data=digits", *learning("distill.temperature=1", teacher="efficientnet_lite0")])
    picture = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None]
    _, (synsets, descriptions) = load_published("efficientnet_lite0")
    for known in (synsets, descriptions):
        classes = [known[place] for place in (698, 985, 0)]  # a palace, a daisy, a tench
        teacher = load_teacher(find_teacher(config), config, classes)
        assert teacher is not None
        assert teacher.logits(picture).argmax(1).tolist() == [1]
        assert teacher.classifier.image_size == 224
    assert teacher.facts.val_accuracy is None


def test_a_network_of_timm_says_its_classes(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(network, tmp_path / "there", model_config={"label_names": ["cat", "dog", "fly"]})
    teacher_of = lambda name: compose_run(["data=digits", *learning(teacher=name)])  # noqa: E731
    there = teacher_of(f"timm:local-dir:{tmp_path / 'there'}")
    teacher = load_teacher(find_teacher(there), there, ("fly", "cat"))
    assert teacher is not None
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval()(teacher.classifier.preprocess(images))[:, [2, 0]]
    assert torch.equal(teacher.logits(images), expected)
    with pytest.raises(ConfigError, match=r"not know 1 of the 2 classes \(bee\); it knows cat, dog, fly"):
        load_teacher(find_teacher(there), there, ("fly", "bee"))
    with pytest.raises(ModelError, match="timm:resnet58: timm has no network 'resnet58'; did you mean"):
        load_teacher(find_teacher(other := teacher_of("timm:resnet58")), other, ("fly",))


@pytest.mark.slow
def test_a_bundle_teaches_as_its_run_does(teacher_run: Path, tmp_path: Path) -> None:
    from harness.export.bundle import export_checkpoint
    from harness.export.manifest import RunFacts
    from tests.export.conftest import make_images

    facts = RunFacts(run_id="0123", metrics={"val/accuracy": 0.75})
    bundle = export_checkpoint(teacher_run, tmp_path, name="demo", val_images=make_images(), facts=facts)
    of_run, of_bundle = (
        compose_run(["data=digits", *learning(teacher=name)]) for name in ("taught", str(bundle.path))
    )
    both = [load_teacher(find_teacher(config), config, DIGITS) for config in (of_run, of_bundle)]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].facts.digest == both[1].facts.digest
    assert both[1].facts.val_accuracy == 0.75
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(both[0].logits(images), both[1].logits(images))


@pytest.mark.parametrize(
    ("overrides", "error", "line"),
    [
        (["distill.teacher=taught"], ConfigError, "a teacher takes effect with distill=soft_targets"),
        (["distill=soft_targets"], ConfigError, "distill.teacher is not set"),
        (learning("distill.temperature=0"), ConfigError, "distill.temperature=0: .* greater than 0"),
        (learning("distill.weight=1.5"), ConfigError, "distill.weight=1.5: .* less than or equal to 1"),
        (learning(teacher="tought"), TrackingError, "distill.teacher=tought: no run .*; near: taught"),
        (learning(teacher="a/bundle"), ConfigError, "there is no bundle in this folder"),
        (
            learning(teacher="efficientnet_lite0"),
            ConfigError,
            r"does not know 10 of the 10 classes \(0, 1, 2, 3 and 6 more\); it knows n01440764",
        ),
    ],
)
def test_a_wrong_teacher_is_one_line(
    teacher_run: Path, overrides: list[str], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        describe_run(compose_run(["data=digits", "model=lenet", *overrides]))


def test_it_can_be_searched_costs_what_it_computes_and_takes_images(teacher_run: Path) -> None:
    probe = ["data=digits", "model=efficientnet_lite0", "finetune=linear_probe", "augment=none"]
    plain, taught = compose_run(probe), compose_run([*probe, *learning()])
    assert views_to_cache(plain) == 1
    assert views_to_cache(taught) is None
    assert needs_images(taught) == "the teacher (distill.teacher) answers to images"
    of_teacher = count_forward_flops(RunConfig(model=BIGGER), 10)
    extra = count_image_flops(taught, 10, None).step - count_image_flops(plain, 10, None).step
    assert extra == of_teacher > 0
    space = "sweep.space={distill.temperature: {type: float, low: 1, high: 8}}"
    plan = compose_sweep([*probe, *learning(), space, "sweep.rules=[]"])
    trial = plan.compose_trial({"distill.temperature": 2.5})
    assert trial.distill == SoftTargets(teacher="taught", temperature=2.5)
    assert isinstance(trial.model, EfficientNetLite0)


@pytest.mark.slow
def test_resumed_it_ends_as_uninterrupted_and_with_another_teacher_it_does_not_go_on(
    teacher_run: Path, run: Run, tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = ("augment=mix", "data.batch_size=64", "optim.accumulate_batches=3", "trainer.precision=fp32")
    config = tiny_config(*how, "trainer.max_epochs=3", *learning())
    with caplog.at_level(logging.INFO):
        _, tracker = run(config, "whole")
    assert "teacher: run" in caplog.text
    assert "the teacher was trained with other images, or another split" in caplog.text
    recorded = tracker.params
    assert (recorded["teacher.val_accuracy"], recorded["distill.weight"]) == ("0.75", "0.9")
    assert recorded["teacher.digest"] == load_raw(tmp_path / "whole" / "last.ckpt")[SECTION]["teacher"]
    run(config, **stop_after(1))
    run(config)
    whole, parts = (load_raw(tmp_path / folder / "last.ckpt")["state_dict"] for folder in ("whole", "run"))
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    untaught, _ = run(tiny_config(*how, "trainer.max_epochs=1"), "untaught")
    assert untaught.metrics["val/loss"] != tracker.epochs[0]["val/loss"]

    run(config, "again", **stop_after(1))
    write_checkpoint(teacher_run, seed=1)
    with pytest.raises(
        CheckpointError, match=r"learnt from a teacher with weights .*: put the first teacher"
    ):
        run(config, "again")
    teacher_run.unlink()
    with pytest.raises(TrackingError, match=r"distill.teacher=taught: the checkpoint of run .* is gone"):
        run(config, "again")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    teacher_run: Path, run: Run, tiny_config: Config, tmp_path: Path
) -> None:
    from tests.training.together import start

    config = tiny_config("trainer.max_epochs=1", "trainer.precision=fp32", "augment=mix", *learning())
    alone, tracker = run(config)
    both = config.model_copy(update={"trainer": config.trainer.model_copy(update={"devices": 2})})
    result, together = start(both, tmp_path / "both").result()
    assert result.metrics["val/loss"] == pytest.approx(alone.metrics["val/loss"], rel=1e-4)
    assert together.params["teacher.digest"] == tracker.params["teacher.digest"]
    assert together.summary["train_pflop"] == tracker.summary["train_pflop"]
