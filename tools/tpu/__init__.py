"""Of pre-flight: the programs of a step, the compiler for TPUs that are not there, and what it says."""
