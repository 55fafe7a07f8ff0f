"""Where one's own data come from, one file a kind. Each is a dataclass of flags whose `items()` lists what there is."""
