"""What `cga-lightning compare` consists of: data, networks, one run, many runs, tables."""
