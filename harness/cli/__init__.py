"""The command line. Nothing heavy is imported before a command needs it, so `--help` is instant."""

from harness.cli.main import build_parser, main, parse

__all__ = ["build_parser", "main", "parse"]
