"""The benchmarks: `make bench`. One run of a whole system on this machine gives one table and `bench.json`."""
