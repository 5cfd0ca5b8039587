"""Configuration files as people save them: of a faulty one, the name, the line and the cure are said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.config.compose import CONFIG_DIR, compose_run, compose_sweep
from harness.errors import ConfigError

GOOD = """\
# @package _global_
# One question.
defaults:
  - override /model: lenet
  - override /finetune: full
  - _self_
sweep:
  num_trials: 2
  space:
    optim.lr: {type: float, low: 1.0e-3, high: 5.0e-3, log: true}
"""
OPTIM = "kind: sgd\nlr: 0.1\n"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs"))


def sweep_fault(configs: Path, content: str | bytes) -> str:
    file = configs / "sweep" / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as raised:
        compose_sweep(["sweep=mine"], configs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace("  num_trials", "\tnum_trials"), "sweep/mine.yaml, line 8: a tab"),
        (GOOD.replace("num_trials: 2", "num_trials:\t- 2"), "sweep/mine.yaml, line 8: "),
        (GOOD.replace("  space:", "  num_trials: 3\n  space:"), "line 9: the key 'num_trials' stands twice"),
        (GOOD.replace("question", "Fähigkeit").encode("latin-1"), "line 2: byte 0xe4 is no UTF-8"),
        (GOOD.encode("utf-16"), "is written in UTF-16: save it as plain UTF-8"),
        (GOOD.encode("utf-16-le"), "null bytes"),
        (GOOD.encode("utf-8-sig"), "with a byte order mark: save it as plain UTF-8"),
        (GOOD.partition("\n")[2], "its first line must be '# @package _global_': add it"),
        (GOOD + "  a: b: c\n", "line 11: mapping values are not allowed here"),
        (GOOD + "  name: [x\n", "sweep/mine.yaml, line 12"),
        (GOOD + "  name: *x\n", "line 11: found undefined alias 'x'"),
        (GOOD + "  name: !!python/object:os.system x\n", "line 11: could not determine a constructor"),
        ("- a\n- b\n", "sweep/mine.yaml: it is a list"),
        ("hello\n", "sweep/mine.yaml: it is one value"),
        ("", "sweep.space is not set"),
        ("# @package _global_\nseed: 1\n", "sweep/mine.yaml has no section `sweep:`"),
        (GOOD.replace("lenet", "lennet"), "no file configs/model/lennet.yaml"),
        (GOOD.replace("num_trials: 2", "num_trials: 2.0"), "sweep.num_trials=2.0: expected a whole number"),
        (GOOD + "  name: 2026_11_25\n", "sweep.name=20261125: expected text: put it in quotes"),
        (GOOD + "  name: ${nope.x}\n", "sweep.name: Interpolation key 'nope.x' not found"),
        ("# @package _global_\nsweep: " + "[" * 3000, "sweep/mine.yaml: "),
    ],
)
def test_the_file_the_line_and_the_cure_are_said(configs: Path, content: str | bytes, message: str) -> None:
    assert message in sweep_fault(configs, content)


def test_the_good_file_is_good_with_windows_lines_too(configs: Path) -> None:
    for content in (GOOD, GOOD.replace("\n", "\r\n")):
        (configs / "sweep" / "mine.yaml").write_text(content, newline="")
        assert list(compose_sweep(["sweep=mine"], configs).sweep.space) == ["optim.lr"]


def test_a_sweep_that_sets_its_own_section_alone_needs_no_header(configs: Path) -> None:
    (configs / "sweep" / "mine.yaml").write_text(
        "num_trials: 2\nspace:\n  optim.lr: {type: float, low: 0.1, high: 0.2}\n"
    )
    assert compose_sweep(["sweep=mine"], configs).sweep.num_trials == 2


@pytest.mark.parametrize("name", ["run.yaml", "optim/mine.yaml"])
@pytest.mark.parametrize("fault", ["", "\tmomentum: 0.9\n"])
def test_files_of_groups_and_the_root_are_read_as_carefully(configs: Path, name: str, fault: str) -> None:
    text = (configs / "run.yaml").read_text() if name == "run.yaml" else OPTIM
    (configs / name).write_text(text + fault, encoding="utf-8" if fault else "utf-16")
    with pytest.raises(ConfigError, match=name):
        compose_run(["optim=mine"] if "mine" in name else [], configs)


def test_a_recipe_without_its_header_is_named(configs: Path) -> None:
    (configs / "recipe" / "mine.yaml").write_text("optim:\n  lr: 0.3\n")
    with pytest.raises(ConfigError, match=r"recipe/mine.yaml: it sets optim, so its first line must be"):
        compose_run(["recipe=mine"], configs)


def test_a_broken_file_that_nobody_asked_for_is_no_fault(configs: Path) -> None:
    (configs / "optim" / "draft.yaml").write_text("\tkind: sgd\n")
    compose_run([], configs)


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration folder at"):
        compose_run([], tmp_path / "nowhere")
