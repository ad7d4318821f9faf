"""Training and evaluation; takes objects, never a config."""
