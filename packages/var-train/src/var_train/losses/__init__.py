"""What the tokenizer is trained against."""
