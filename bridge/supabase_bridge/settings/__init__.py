"""The settings of the product, from arguments, environment and TOML file.

Entry points: `model.Settings.load`, and `Settings.for_registry` for a process without an object store.
Only `sources` reads the environment and the file; `model` has all rules.
It imports core.
"""
