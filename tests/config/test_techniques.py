"""The techniques of training can be searched by their dotted paths, and their files as groups."""

from __future__ import annotations

from harness.config.compose import compose_sweep

BASE = ["data=digits", "model=resnet18", "finetune=full", "sweep.rules=[]"]


def space(*dimensions: str) -> str:
    return f"sweep.space={{{', '.join(dimensions)}}}"


def choice(path: str, *values: str) -> str:
    return f"{path}: {{type: choice, values: [{', '.join(values)}]}}"


def test_settings_are_searched_by_their_paths() -> None:
    searched = space(
        choice("optim.name", "lion", "adan"),
        choice("optim.schedule.kind", "cosine", "trapezoid", "plateau"),
        choice("optim.clip_grad_adaptive", "null", "0.01"),
        choice("trainer.gradient_checkpointing", "false", "true"),
        "optim.schedule.cycles: {type: int, low: 1, high: 3}",
        "optim.accumulate_batches: {type: int, low: 1, high: 4}",
        "average.decay: {type: float, low: 0.9, high: 0.999}",
        "loss.gamma: {type: float, low: 0.5, high: 3.0}",
        "loss.l2: {type: float, low: 1.0e-6, high: 1.0e-3, log: true}",
        "model.drop_rate: {type: float, low: 0.0, high: 0.5}",
        choice("augment.policy", "none", "augmix"),
        "augment.augmix_severity: {type: int, low: 1, high: 10}",
        "augment.rotation: {type: float, low: 0.0, high: 30.0}",
        "augment.blur_sigma: {type: float, low: 0.0, high: 1.0}",
        "augment.mix_off_epoch: {type: int, low: 1, high: 9}",
    )
    others = ["optim=timm", "optim.name=adan", "average=ema", "loss=focal", "trainer.max_epochs=10"]
    plan = compose_sweep([*BASE, *others, searched])
    chosen = {
        "optim.schedule.kind": "trapezoid",
        "optim.clip_grad_adaptive": 0.01,
        "trainer.gradient_checkpointing": True,
        "optim.schedule.cycles": 2,
        "optim.accumulate_batches": 3,
        "average.decay": 0.95,
        "loss.gamma": 1.5,
        "loss.l2": 1e-4,
        "model.drop_rate": 0.25,
        "augment.policy": "augmix",
        "augment.augmix_severity": 5,
        "augment.rotation": 12.5,
        "augment.blur_sigma": 0.5,
        "augment.mix_off_epoch": 8,
    }
    trial = plan.compose_trial(chosen).to_dict()
    for path, value in chosen.items():
        found = trial
        for step in path.split("."):
            found = found[step]
        assert found == value, path


def test_files_are_searched_as_groups() -> None:
    searched = space(
        choice("average", "none", "ema", "swa"), choice("loss", "cross_entropy", "binary", "focal")
    )
    plan = compose_sweep([*BASE, searched])
    for average, loss in (("none", "focal"), ("ema", "cross_entropy"), ("swa", "binary")):
        trial = plan.compose_trial({"average": average, "loss": loss})
        assert (trial.average.kind, trial.loss.kind) == (average, loss)
