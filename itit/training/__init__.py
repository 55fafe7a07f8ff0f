"""What surrounds the step in a run: state, evaluation, curves, saves, and how a run ends."""
