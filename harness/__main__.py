"""``python -m harness``, and the ``harness`` command."""

from harness.signals import answer_interrupts, leave_at_once


def run() -> int:
    """Run a command; Ctrl-C is handled from the start, also while the modules are still imported."""
    try:
        answer_interrupts()
        from harness.cli.main import main

        return main()
    except KeyboardInterrupt:
        leave_at_once()


if __name__ == "__main__":
    raise SystemExit(run())
