"""Whether this machine and its software can do the work of this project."""
