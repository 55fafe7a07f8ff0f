"""Of the tools that make and look at data: sources, shards, splits."""
