"""The demo: a small network trained privately on scanned digits, beside its plain twin."""
