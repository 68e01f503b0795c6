"""The weight files of PyTorch, MindSpore and safetensors, read and written safely."""
