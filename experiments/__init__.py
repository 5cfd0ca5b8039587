"""One folder per question: how it was asked, and a REPORT.md of what was measured."""
