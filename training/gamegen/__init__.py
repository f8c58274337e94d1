"""A small GameGen-X (arXiv 2411.00769) in PyTorch: the modules that training/ trains and exports."""
