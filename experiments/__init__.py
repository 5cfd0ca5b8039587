"""One folder per set of measurements: the code that takes them and, if it writes one, its REPORT.md."""
