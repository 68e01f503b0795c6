"""The PyTorch reference equals the independent implementation outside the repository."""

import statistics
import time

import peers
import pytest
import tiny
from var_tokenizer import SCALES_256, SCALES_512, TokenizerConfig
from var_transformer import TransformerConfig

torch = pytest.importorskip("torch")
from var_convert.reference import TorchTokenizer, TorchTransformer, torch_generate  # noqa: E402

TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()

TOKENIZERS = {
    "4 shared convolutions": TOKENIZER,
    "1 shared convolution": tiny.tokenizer(phi_count=1),
    "a convolution each": tiny.tokenizer(phi_count=3),
    "more blocks and levels": tiny.tokenizer(channel_multipliers=(1, 1, 2), res_blocks=2),
    "256 px": tiny.tokenizer(scales=SCALES_256),
    "512 px": tiny.tokenizer(scales=SCALES_512, channel_multipliers=(1,)),
}
TRANSFORMERS = {
    f"{'shared' if shared else 'own'} AdaLN, {'' if l2 else 'no '}QK-L2": tiny.transformer(
        shared_adaln=shared, qk_l2_norm=l2
    )
    for shared in (False, True)
    for l2 in (False, True)
} | {
    "256 px": tiny.transformer(scales=SCALES_256),
    "512 px": tiny.transformer(depth=1, scales=SCALES_512),
}


def pair_of(peer, config):
    """A model of the reference, and the peer's weights, which it has."""
    if isinstance(config, TokenizerConfig):
        weights, model = peer.random_vae(peers.vae_spec(config)), TorchTokenizer(config)
    else:
        weights, model = peer.random_var(peers.var_spec(config)), TorchTransformer(config)
    model.load_state_dict(weights, strict=True)
    return model, weights


TOKENIZER_CASES = [
    *(pytest.param(config, id=name) for name, config in TOKENIZERS.items()),
    pytest.param(TokenizerConfig(), id="as published", marks=pytest.mark.slow),
]
TRANSFORMER_CASES = [
    *(pytest.param(config, id=name) for name, config in TRANSFORMERS.items()),
    pytest.param(TransformerConfig.preset("d16"), id="d16", marks=pytest.mark.slow),
]


@torch.inference_mode()
@pytest.mark.parametrize("config", TOKENIZER_CASES)
def test_the_tokenizer_computes_the_peers_numbers(peer, config):
    tokenizer, weights = pair_of(peer, config)
    images = torch.rand(2, 3, *config.image_size) * 2 - 1
    latent = peer.encode(weights, images)
    ids, quantized = peer.quantize(weights, latent, config.scales)
    found, found_quantized = tokenizer.to_ids(tokenizer.latent(images))
    assert all(map(torch.equal, found, ids))
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(tokenizer.latent(images), latent, **close)
    torch.testing.assert_close(found_quantized, quantized, **close)
    inputs = peer.teacher_inputs(weights, ids, config.scales)
    torch.testing.assert_close(tokenizer.teacher_inputs(ids), inputs, **close)
    decoded = peer.decode(weights, peer.dequantize(weights, ids, config.scales))
    torch.testing.assert_close(tokenizer.decode(ids), decoded, **close)


@torch.inference_mode()
def test_progressive_decoding_adds_one_scale_at_a_time(peer):
    tokenizer, weights = pair_of(peer, TOKENIZER)
    ids = tokenizer.encode(torch.rand(2, 3, *TOKENIZER.image_size) * 2 - 1)
    for k, image in enumerate(tokenizer.decode_progressive(ids), 1):
        so_far = peer.dequantize(weights, ids[:k], TOKENIZER.scales)
        torch.testing.assert_close(image, peer.decode(weights, so_far), rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("config", TRANSFORMER_CASES)
def test_the_transformer_computes_the_peers_logits(peer, config):
    transformer, weights = pair_of(peer, config)
    labels, read = torch.tensor([2, config.num_classes]), config.schedule.length - 1
    inputs = torch.randn(2, read, config.latent_channels)
    expected = peer.logits(weights, labels, inputs, peers.var_spec(config))
    torch.testing.assert_close(transformer(labels, inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_k": 9, "top_p": 0.8}, {"cfg": 3.0}])
@pytest.mark.parametrize("config", TRANSFORMER_CASES)
def test_generation_draws_the_peers_ids(peer, config, sampling):
    transformer, weights = pair_of(peer, config)
    vae = tiny.tokenizer(
        vocab_size=config.vocab_size,
        latent_channels=config.latent_channels,
        channel_multipliers=(1,),
        scales=config.scales,
    )
    tokenizer, vae_weights = pair_of(peer, vae)
    labels = torch.tensor([2, 0])
    images, ids = peer.generate(
        weights,
        vae_weights,
        labels,
        peers.var_spec(config),
        generator=torch.Generator().manual_seed(1),
        **sampling,
    )
    found = torch_generate(
        transformer, tokenizer, labels, generator=torch.Generator().manual_seed(1), **sampling
    )
    assert all(map(torch.equal, found.ids, ids))
    torch.testing.assert_close(found.images, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_gradients_are_the_peers(peer, config):
    transformer, weights = pair_of(peer, config)
    for name, tensor in weights.items():
        if name in dict(transformer.named_parameters()):
            tensor.requires_grad_()
    labels, read = torch.tensor([2, config.num_classes]), config.schedule.length - 1
    inputs = torch.randn(2, read, config.latent_channels)
    peer.logits(weights, labels, inputs, peers.var_spec(config)).square().mean().backward()
    transformer(labels, inputs).square().mean().backward()
    for name, parameter in transformer.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_key_value_cache_changes_nothing(random_model):
    """The last scale's choice with all scales in one pass is the one made step by step."""
    config = tiny.transformer(num_classes=5)
    transformer, tokenizer = random_model(config), random_model(TOKENIZER)
    labels = torch.tensor([1, 4])
    ids = torch_generate(transformer, tokenizer, labels, cfg=0.0, top_k=1).ids
    logits = transformer(labels, tokenizer.teacher_inputs(ids))
    assert torch.equal(logits.argmax(-1), torch.cat(ids, 1))


NOT_SQUARE = (1, (1, 2), (2, 4))


@torch.inference_mode()
def test_maps_need_not_be_square(random_model):
    vae = tiny.tokenizer(scales=NOT_SQUARE)
    tokenizer = random_model(vae)
    ids = tokenizer.encode(torch.rand(1, 3, *vae.image_size) * 2 - 1)
    assert [i.shape for i in ids] == [(1, 1), (1, 2), (1, 8)]
    assert tokenizer.decode(ids).shape == (1, 3, 4, 8)
    var = random_model(tiny.transformer(scales=NOT_SQUARE))
    images = torch_generate(var, tokenizer, torch.tensor([0]), top_k=1).images
    assert images.shape == (1, 3, 4, 8)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("config", [TOKENIZER, TRANSFORMER], ids=["vae", "var"])
def test_it_loads_every_format(save_pth, config, suffix):
    from var_convert import convert

    path, state = save_pth(config)
    target = path.with_name(f"copy{suffix}")
    convert(path, target)
    kind = TorchTokenizer if config is TOKENIZER else TorchTransformer
    loaded = kind.from_file(target).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def assert_as_fast(ours, theirs, pairs=9, attempts=3):
    """The medians of runs in turn differ by less than 3 %; a busy machine gets three attempts."""
    ours(), theirs()
    ratios = []
    for _ in range(attempts):
        times = [(seconds_of(ours), seconds_of(theirs)) for _ in range(pairs)]
        ratios.append(statistics.median(a / b for a, b in times))
        if ratios[-1] <= 1.03:
            return
    raise AssertionError(f"median ratios ours/peer: {ratios}; expected at most 1.03")


@pytest.mark.slow
@torch.inference_mode()
def test_the_reference_is_as_fast_as_the_peer(peer):
    config = TransformerConfig(depth=2, width=1024, heads=16)
    transformer, weights = pair_of(peer, config)
    spec, labels = peers.var_spec(config), torch.tensor([2])
    inputs = torch.randn(1, config.schedule.length - 1, config.latent_channels)
    assert_as_fast(
        lambda: transformer(labels, inputs), lambda: peer.logits(weights, labels, inputs, spec)
    )

    config = TokenizerConfig(channel_multipliers=(1, 1, 2, 4), scales=(1, 2, 4, 8, 16))
    tokenizer, weights = pair_of(peer, config)
    images = torch.rand(1, 3, *config.image_size) * 2 - 1
    assert_as_fast(lambda: tokenizer.latent(images), lambda: peer.encode(weights, images))
    ids = tokenizer.to_ids(tokenizer.latent(images))[0]
    assert_as_fast(
        lambda: tokenizer.decode(ids),
        lambda: peer.decode(weights, peer.dequantize(weights, ids, config.scales)),
    )
