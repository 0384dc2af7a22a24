"""Networks as files that run elsewhere, without Python or without PyTorch."""
