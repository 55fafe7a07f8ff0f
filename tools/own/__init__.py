"""One's own data in one command: what there is, what follows from it, and the commands one after another."""
