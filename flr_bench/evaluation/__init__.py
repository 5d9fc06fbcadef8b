"""Metrics, strata and significance. Knows only rankings and examples."""
