"""Where images come from: one module per data set, each with a `load` that returns a decoded set."""
