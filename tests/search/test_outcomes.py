"""What becomes of a trial that cannot be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from harness.config.compose import compose_run
from harness.errors import DataError, DivergedError, ImageSizeError
from harness.models import build_model
from harness.search.study import keys
from harness.search.study import trials as studies
from harness.search.trial.memory_limit import footprint, why_it_cannot_fit
from harness.search.trial.outcomes import judge
from tests.search.conftest import SmallSweep
from tests.search.test_samplers import RANGES, new_study, sweep_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def raised(error: Exception, cause: BaseException | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "infeasible"),
        (MemoryError(), "infeasible"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "infeasible",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "infeasible"),
        (OSError(12, "Cannot allocate memory"), "infeasible"),
        (raised(ValueError("wrapped"), MemoryError()), "infeasible"),
        (DivergedError("the loss became NaN"), "infeasible"),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "lost"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. out of memory?"), "lost"),
        (OSError(28, "No space left on device"), "failed"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "failed"),
        (DataError("no images"), "failed"),
    ],
)
def test_errors_are_told_apart(error: Exception, verdict: str) -> None:
    found, reason = judge(error)

    assert found == verdict
    assert "\n" not in reason
    assert reason


def test_torchs_own_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)

    assert judge(caught.value)[0] == "infeasible"


def test_a_size_that_the_model_rejects_is_an_answer() -> None:
    config = compose_run(["data=digits", "model=lenet", "model.image_size=8"])
    with pytest.raises(ImageSizeError) as caught:
        build_model(config.model, 10)

    assert judge(caught.value) == ("infeasible", str(caught.value))


def test_what_did_not_fit_is_refused_with_as_much_or_more() -> None:
    def needed(*overrides: str) -> dict[str, Any]:
        return footprint(compose_run(["data=digits", "trainer.device=cpu", *overrides]))

    study = new_study(sweep_of("tpe", RANGES))
    study.ask().set_user_attr(keys.OUT_OF_MEMORY, needed("data.batch_size=128"))

    reason = "out of memory, as trial 0 at batch size 128"
    assert why_it_cannot_fit(study, needed("data.batch_size=128", "optim.lr=0.5")) == reason
    assert why_it_cannot_fit(study, needed("data.batch_size=512")) == reason
    assert why_it_cannot_fit(study, needed("data.batch_size=64")) is None
    assert why_it_cannot_fit(study, needed("data.batch_size=512", "model.image_size=64")) is None
    assert why_it_cannot_fit(study, needed("data.batch_size=512", "finetune=linear_probe")) is None
    assert why_it_cannot_fit(study, needed("data.batch_size=512", "trainer.precision=fp32")) is None or (
        needed()["precision"] == "fp32"
    )


def test_tpe_stays_away_from_what_is_infeasible() -> None:
    """A failed trial would teach it nothing: it would go on where the scores get better."""

    def num_beyond(seed: int, *, infeasible: bool) -> int:
        sweep = sweep_of("tpe", {"x": {"type": "float", "low": 0, "high": 1}}, sampler={"seed": seed})
        study = new_study(sweep)
        for number in range(30):
            trial = study.ask()
            own = studies.load_study_for_trial(study._storage, "mine", sweep, number)
            x = optuna.trial.Trial(own, trial._trial_id).suggest_float("x", 0, 1)
            if x <= 0.5:
                study.tell(trial, x)
            elif infeasible:
                trial.set_constraint("infeasible", 1.0)
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, state=TrialState.FAIL)
        return sum(trial.params["x"] > 0.5 for trial in study.trials[10:])

    learned = sum(num_beyond(seed, infeasible=True) for seed in range(3))
    assert learned < 0.7 * sum(num_beyond(seed, infeasible=False) for seed in range(3))


BATCHES = "    data.batch_size: {type: choice, values: [64, 128, 256]}\n"
POINTS = f"  enqueue: [{', '.join(f'{{data.batch_size: {size}}}' for size in (128, 256, 64, 128))}]\n"


def test_out_of_memory_is_met_once(small_sweep: SmallSweep) -> None:
    file = small_sweep.configs / "sweep" / "small.yaml"
    file.write_text(file.read_text() + BATCHES + POINTS)
    small_sweep.behave(memory=128)
    result = small_sweep.run("sweep.num_trials=4")

    assert [row.state for row in result.rows] == ["infeasible", "infeasible", "complete", "infeasible"]
    assert (result.rows[0].reason or "").startswith("out of memory (RuntimeError: DefaultCPUAllocator")
    assert result.rows[1].reason == result.rows[3].reason == "out of memory, as trial 0 at batch size 128"
    assert [began(small_sweep.trial_folder(number)) for number in range(4)] == [1, 0, 1, 0]
    assert result.best == result.rows[2]


@pytest.mark.slow
def test_a_lost_worker_is_no_ones_fault(small_sweep: SmallSweep) -> None:
    small_sweep.behave(lose_worker={"0": 2, "1": 99})
    result = small_sweep.run("sweep.num_trials=2", "sweep.max_retries=2")

    assert [row.state for row in result.rows] == ["complete", "failed"]
    assert [began(small_sweep.trial_folder(number)) for number in range(2)] == [3, 3]


def began(folder: Path) -> int:
    account = folder / "account.txt"
    return account.read_text().count("start") if account.is_file() else 0
