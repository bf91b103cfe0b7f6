"""How long a private step takes, against a plain one and against Opacus: ``python -m benchmarks run``."""
