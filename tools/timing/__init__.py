"""Of the tools that measure time: random batches, arithmetic and parts of a step, models to compare with."""
