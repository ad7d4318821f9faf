"""What things cost: the work of tools/benchmark.py."""
