"""The losses of the tokenizer: reconstruction, perceptual and adversarial."""
