"""A finetuning policy is one class and one YAML file: this adds one, in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NORMS_ONLY = '''

class NormsOnly(FinetunePolicy):
    """Train the head and every normalisation layer."""

    kind: Literal["norms"] = "norms"
    backbone_lr_scale: LearningRateScale = 0.5
    step_cost = 2
    trains = "the head and the normalisation layers"

    @property
    def backbone_rate(self) -> float:
        return self.backbone_lr_scale

    def trainable(self, network: TensorNames) -> Trainable:
        return Trainable(network.head | network.norms)
'''
SEE = """
import contextlib, io
from harness.cli.main import main
from harness.config.compose import compose_sweep
from harness.models import apply_freezing, build_model
from harness.search.coordinator.measure_slots import heaviest_run
from harness.training.optimisation.optim import build_optimizer

space = "sweep.space.finetune.values=[linear_probe,partial,norms]"
plan = compose_sweep(["data=digits", "sweep.rules=[]", space])
assert heaviest_run(plan).finetune.kind == "norms"
run = plan.compose_trial({"finetune": "norms"})
classifier = build_model(run.model, 10, load_weights=False)
print(apply_freezing(classifier, run.finetune))
trained = {name for name, p in classifier.network.named_parameters() if p.requires_grad}
assert {"bn1.weight", "blocks.0.0.bn1.bias", "classifier.weight"} <= trained, trained
assert not any("conv" in name for name in trained)
rates = {g["name"]: g["lr"] for g in build_optimizer(classifier, run.optim, run.finetune).param_groups}
assert rates["backbone/no_decay"] == 0.5 * rates["head/decay"], rates

message = io.StringIO()
with contextlib.redirect_stderr(message):
    assert main(["train", "finetune=norm"]) == 2
assert "norms" in message.getvalue(), message.getvalue()

small = ["model.image_size=32", "data.max_train_samples=128", "trainer.max_epochs=1"]
quiet = ["tracking.log_model=false", "evaluation.pictures=none"]
assert main(["train", "data=digits", "finetune=norms", *small, *quiet]) == 0
"""


@pytest.fixture
def project_with_norms(tmp_path: Path) -> Path:
    """A copy of the project with one class and one YAML file more, and nothing else changed."""
    for name in ("harness", "configs"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    with (tmp_path / "harness/config/finetune.py").open("a") as file:
        file.write(NORMS_ONLY)
    (tmp_path / "configs/finetune/norms.yaml").write_text("kind: norms\nbackbone_lr_scale: 0.5\n")
    return tmp_path


@pytest.mark.slow
def test_a_new_policy_is_in_the_schema_the_sweep_the_optimiser_and_the_messages_and_trains(
    project_with_norms: Path, empty_databases: list[Path]
) -> None:
    runs = project_with_norms / "mlruns"
    runs.mkdir()
    shutil.copy(empty_databases[1], runs)
    done = subprocess.run(
        [sys.executable, "-c", SEE],
        cwd=project_with_norms,
        env={**os.environ, "PYTHONPATH": str(project_with_norms), "MLRUNS_DIR": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = next(line for line in done.stdout.splitlines() if "train (" in line)
    assert report.endswith("the head and the normalisation layers")
    assert "best: " in done.stdout, "it has trained"
