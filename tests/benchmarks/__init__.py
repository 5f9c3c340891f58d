"""The benchmarks: `make bench` runs a whole system on this machine, prints one table, and writes `bench.json`."""
