"""`cga-lightning check`: try a module and its data for two steps."""
