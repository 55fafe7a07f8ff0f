"""Of `tools.study`: files of experiments, their data and runs, and the report."""
