"""The tensors that a transformer of a given configuration has, without building one."""

from collections.abc import Iterator

from var_transformer.model.config import TransformerConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def transformer_shapes(config: TransformerConfig) -> Shapes:
    """Name and shape of every tensor of a native file, in order.

    Takes almost no memory, however large the sizes that the configuration claims.
    """
    c, schedule = config.width, config.schedule
    yield "pos_start", (1, schedule.tokens[0], c)
    yield "pos_1LC", (1, schedule.length, c)
    yield from _linear("word_embed", config.latent_channels, c)
    yield "class_emb.weight", (config.num_classes + 1, c)
    yield "lvl_embed.weight", (len(schedule), c)
    if config.shared_adaln:
        yield from _linear("shared_ada_lin.1", c, 6 * c)
    for i in range(config.depth):
        name = f"blocks.{i}"
        if config.shared_adaln:
            yield f"{name}.ada_gss", (1, 1, 6, c)
        if config.qk_l2_norm:
            yield f"{name}.attn.scale_mul_1H11", (1, config.heads, 1, 1)
        yield f"{name}.attn.q_bias", (c,)
        yield f"{name}.attn.v_bias", (c,)
        yield f"{name}.attn.mat_qkv.weight", (3 * c, c)
        yield from _linear(f"{name}.attn.proj", c, c)
        yield from _linear(f"{name}.ffn.fc1", c, 4 * c)
        yield from _linear(f"{name}.ffn.fc2", 4 * c, c)
        if not config.shared_adaln:
            yield from _linear(f"{name}.ada_lin.1", c, 6 * c)
    yield from _linear("head_nm.ada_lin.1", c, 2 * c)
    yield from _linear("head", c, config.vocab_size)


def _linear(name: str, c_in: int, c_out: int) -> Shapes:
    yield f"{name}.weight", (c_out, c_in)
    yield f"{name}.bias", (c_out,)
