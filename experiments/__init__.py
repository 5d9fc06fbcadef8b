"""The suites that ship with flr-bench, as YAML files."""
