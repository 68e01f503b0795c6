"""Which kind of model tensors are, by what the file notes or by their names."""

from collections.abc import Collection

from var_tokenizer.common import InputError, quoted

from var_convert.formats.weights import Weights

KINDS = ("tokenizer", "transformer")

# Parts of names that VAR does not have -> the structure that has them; the first match counts.
RELATIVES = {
    "text_proj_for_sos": "Infinity, which draws from text",
    "text_proj_for_ca": "Infinity, which draws from text",
    "cfg_uncond": "Infinity, which draws from text",
    "diffloss": "MAR, whose tokens are continuous",
    "fake_latent": "MAR, whose tokens are continuous",
    "tok_embeddings": "LlamaGen, which draws token by token",
    "cls_embedding": "LlamaGen, which draws token by token",
    "t_embedder": "a diffusion transformer (DiT)",
    "y_embedder": "a diffusion transformer (DiT)",
    "latent_tokens": "a one-dimensional tokenizer (TiTok)",
    "codebook_used": "the one-scale tokenizer of LlamaGen",
    "down_blocks": "an autoencoder of Diffusers",
    "lfq": "a tokenizer without a codebook (LFQ, BSQ)",
    "bsq": "a tokenizer without a codebook (LFQ, BSQ)",
    "A_log": "a state-space model (Mamba)",
    "ca": "a transformer with cross-attention, as for text",
    "cross_attn": "a transformer with cross-attention, as for text",
}


def is_native(weights: Weights) -> bool:
    """Whether this project wrote the file, so that its metadata says what it holds."""
    return weights.metadata.get("format") == "var-mindspore"


def noted_kind(weights: Weights) -> str | None:
    """Which of KINDS a native file says it is; None for a foreign one.

    Raises InputError if it says something else.
    """
    if not is_native(weights):
        return None
    kind = weights.metadata.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"{weights.source}: kind is {quoted(str(kind))!r} in its metadata; "
            f"expected {' or '.join(KINDS)}"
        )
    return kind


def kind_of_names(names: Collection[str]) -> str | None:
    """Which of KINDS has tensors of such names; None if neither."""
    if any(name.startswith(("blocks.", "word_embed.")) for name in names):
        return "transformer"
    if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in names):
        return "tokenizer"
    return None


def refuse_relatives(source: str, names: Collection[str]) -> None:
    """Raises InputError for a structure of the field that is not VAR's, and says which it is."""
    parts = {part for name in names for part in name.split(".")}
    found = next((what for part, what in RELATIVES.items() if part in parts), None)
    if found is None and "quantize" in parts and "quant_resi" not in parts:
        found = "a one-scale tokenizer (VQGAN)"
    if found is not None:
        raise InputError(f"{source}: {found}; expected VAR, and this structure is not supported")
