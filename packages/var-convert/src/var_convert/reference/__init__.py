"""VAR in PyTorch: the reference of parity tests, ``verify --forward`` and benchmarks.

    tok = TorchTokenizer.from_file("vae.pth")           # or .safetensors, .ckpt
    model = TorchTransformer.from_file("var_d16.pth")
    ids = tok.encode(images)                            # (B,3,H,W) in [-1,1] -> K x (B, s*s)
    x = tok.teacher_inputs(ids)                         # (B, L - s_1^2, z)
    y = model(labels, x)                                # (B, L, V), differentiable
    out = torch_generate(model, tok, labels, top_k=1)   # out.images in [0,1], out.ids

Parameters and buffers carry the published names, so the state dict of a published checkpoint
loads with ``strict=True``. Needs the extra ``[torch]``.
"""

from var_convert.reference.generation import TorchGenerated, torch_generate
from var_convert.reference.tokenizer import TorchTokenizer
from var_convert.reference.transformer import TorchTransformer

__all__ = ["TorchGenerated", "TorchTokenizer", "TorchTransformer", "torch_generate"]
