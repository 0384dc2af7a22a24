"""What is to be compressed, to which size, and how."""
