"""The public Python API: its names, what importing it costs, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import harness
from harness import api

# In the order in which one example uses the results of another.
FUNCTIONS = (
    "compose",
    "train",
    "cross_validate",
    "resume",
    "rerun",
    "evaluate",
    "load",
    "export_run",
    "predict",
    "sweep",
    "replicate",
    "compare",
    "ensemble",
    "finalize",
)

SCRIPT = """
import multiprocessing
from harness import api

@api._starts_processes
def start():
    child = multiprocessing.get_context("forkserver").Process(target=print, args=("child",))
    child.start()
    child.join()

print("imported", flush=True)
start()
"""


def test_the_public_surface_is_what_is_listed() -> None:
    assert sorted([*FUNCTIONS, "HarnessError"]) == sorted(harness.__all__)
    assert set(harness.__all__) <= set(dir(harness))
    defined = {
        name
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__ == api.__name__
    }
    assert {name for name in defined if not name.startswith("_")} == set(FUNCTIONS)
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        harness.tune  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'mlflow', 'optuna', 'pydantic', 'harness.api'}"
    code = f"import sys, harness; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_script_needs_no_guard_for_the_processes_that_a_call_starts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imported", "child"], done.stderr


@pytest.mark.slow  # a minute: it trains, sweeps, exports and tests
@pytest.mark.usefixtures("made_store")
def test_the_examples_of_the_docstrings_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("digit.png")
    names = {"harness": harness, "torch": torch}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name in FUNCTIONS:
        text = inspect.getdoc(getattr(harness, name))
        assert text is not None
        example = doctest.DocTestParser().get_doctest(text, names, name, api.__file__, 0)
        assert example.examples, f"{name} shows no example"
        report: list[str] = []
        failed, _ = runner.run(example, out=report.append, clear_globs=False)
        assert not failed, "".join(report)
        names = example.globs
