"""Speed and memory against the published table; `python benchmarks/run.py --help`."""
