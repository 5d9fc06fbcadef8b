"""Suites, plans, cells, their execution and their store."""
