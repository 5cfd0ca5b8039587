"""Any text gives a configuration or one line: overrides and files, made up and mutated."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config.compose import CONFIG_DIR, compose_run, compose_sweep
from harness.errors import HarnessError
from harness.search.suggest.space import check_space

VALID = [
    "model=lenet", "finetune=full", "optim=sgd", "optim.lr=3e-4", "data.batch_size=64", "recipe=speedrun",
    "augment.flip=alternating", "trainer.max_epochs=3", "tracking.run_name=a b", "evaluate_test=true",
    "optim.schedule={kind: step, step_epochs: 2}", "data.dir='a/b'", "seed=${trainer.max_epochs}", "~seed",
]  # fmt: skip
VALID_SWEEP = [
    "sweep=gpu", "sweep.num_trials=3", "sweep.space.optim.lr.high=0.1", "sweep.name=2026_11_25",
    "sweep.space={optim.lr: {type: float, low: 1e-4, high: 1e-2}}", "sweep.sampler.kind=grid",
    "sweep.rules=[{when: {finetune: full}, overrides: [seed=1]}]", "sweep.enqueue=[{optim.lr: 0.002}]",
    "sweep.space.seed={type: int, low: 0, high: 3, when: {finetune: [partial, full]}}",
    "finetune.trainable_groups=2", "~sweep.space.optim.lr", "sweep.constraints=['params_millions <= 5']",
]  # fmt: skip
PIECES = ["=", ".", "~", "+", "@", "/", "{", "}", "[", "]", ",", ":", "'", '"', "\\", "$", "${", "null",
          "true", "-1", "1e400", "nan", "???", "kind", "type", "values", "when", "low", "\t", "\n", "\0",
          "é", "\ud800", "*", "&", "!!set", "<<", "#", "- ", "%", "\ufeff", "1_0", "0o7", "=("]  # fmt: skip
SHIPPED = [
    (CONFIG_DIR / name).read_text(encoding="utf-8") for name in ("sweep/default.yaml", "sweep/gpu.yaml")
]
RUN_FILES = [
    (CONFIG_DIR / name).read_text(encoding="utf-8") for name in ("optim/sgd.yaml", "data/folder.yaml")
]


@st.composite
def mutated(draw: st.DrawFn, texts: list[str]) -> str:
    """A valid text with pieces taken out, doubled, or replaced by what means something to a parser."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + piece + text[end:]
    return text


def overrides(valid: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(mutated(valid) | st.sampled_from(valid) | st.text(max_size=20), min_size=1, max_size=3)


def files(shipped: list[str]) -> st.SearchStrategy[bytes]:
    text = mutated(shipped) | st.text(max_size=60)
    encodings = st.sampled_from(["utf-8"] * 5 + ["latin-1", "utf-16", "utf-8-sig"])
    return st.builds(lambda text, encoding: text.encode(encoding, "replace"), text, encodings) | st.binary(
        max_size=40
    )


def one_line_or_a_configuration(compose: object, *arguments: object) -> None:
    try:
        compose(*arguments)  # type: ignore[operator]
    except HarnessError as error:
        line = str(error)
    else:
        return
    assert line.strip()
    assert len(line.splitlines()) == 1


def some_sweep(given: list[str], config_dir: Path = CONFIG_DIR) -> None:
    plan = compose_sweep(given, config_dir)
    if len(plan.sweep.space) < 4:  # the corners of a larger one take long
        check_space(plan)


def in_a_folder(name: str, content: bytes, compose: object, asked: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        configs = Path(shutil.copytree(CONFIG_DIR, Path(folder) / "configs"))
        (configs / name).write_bytes(content)
        one_line_or_a_configuration(compose, [asked], configs)


def few(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


SIZES = [pytest.param(5, id="a-few"), pytest.param(2000, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", SIZES)
def test_any_overrides_of_a_run(examples: int) -> None:
    few(examples)(given(overrides(VALID))(lambda texts: one_line_or_a_configuration(compose_run, texts)))()


@pytest.mark.parametrize("examples", SIZES)
def test_any_overrides_of_a_sweep(examples: int) -> None:
    texts = overrides(VALID + VALID_SWEEP)
    few(examples)(given(texts)(lambda texts: one_line_or_a_configuration(some_sweep, texts)))()


@pytest.mark.parametrize("examples", SIZES)
def test_any_file_of_a_run(examples: int) -> None:
    contents = files(RUN_FILES)
    few(examples)(
        given(contents)(lambda raw: in_a_folder("optim/mine.yaml", raw, compose_run, "optim=mine"))
    )()


@pytest.mark.parametrize("examples", SIZES)
def test_any_file_of_a_sweep(examples: int) -> None:
    contents = files(SHIPPED)
    few(examples)(
        given(contents)(lambda raw: in_a_folder("sweep/mine.yaml", raw, some_sweep, "sweep=mine"))
    )()
