"""The search: a space over configuration paths, an Optuna study, and trials placed on every device."""
