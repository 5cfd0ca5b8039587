"""How fast is the harness? `make bench` measures it against public libraries, side by side."""
