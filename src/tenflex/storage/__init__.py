"""What is written to disk, and how it is read again without pickle."""
