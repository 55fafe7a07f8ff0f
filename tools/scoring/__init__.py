"""Of the tools that score: distances between pictures, shares of what is right, the paper's protocols."""
