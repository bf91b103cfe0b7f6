"""The commands of `tacit`, one file each; `tacit.cli` puts them together."""
