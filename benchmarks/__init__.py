"""Measurements that a person runs: ``python benchmarks/requests.py``."""
