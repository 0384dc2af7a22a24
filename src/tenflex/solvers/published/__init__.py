"""Published algorithms, one paper a file."""
