"""Is training private as it is written? The engine against a loop over single samples."""
