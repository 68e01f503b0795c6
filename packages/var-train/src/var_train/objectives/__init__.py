"""What the transformer learns from: likelihood, or what guidance draws, in one pass.

Guided generation (arXiv:2207.12598) draws from p(x|c) * (p(x|c) / p(x)) ** s, and computes each
token with the class and without. ``contrast`` (arXiv:2410.09347) and ``guidance_free``
(arXiv:2501.15420) train the model to be that distribution, so that it needs no guidance.
"""
