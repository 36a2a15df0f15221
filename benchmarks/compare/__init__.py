"""lib_mlx's server against other servers, in one run, with one model: see `python -m benchmarks.compare --help`."""
