"""Both models in plain PyTorch (extra ``[torch]``)."""
