"""`make bench` measures the speed of the harness in comparison with public libraries used directly."""
