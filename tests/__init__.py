"""The suite; a package, so that pytest puts the repository's root on the import path."""
