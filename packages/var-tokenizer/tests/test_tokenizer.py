import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor
from safetensors.numpy import load_file
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError
from var_tokenizer.quantizer import phi_index


def random_ids(tokenizer, batch=3):
    rng = np.random.default_rng(0)
    counts = tokenizer.schedule.tokens
    return [rng.integers(0, tokenizer.vocab_size, (batch, n)) for n in counts]


def test_encode_gives_one_id_map_a_scale_within_the_vocabulary(tokenizer, images_bcyx):
    ids = [np.asarray(i) for i in tokenizer.encode(images_bcyx)]
    assert [i.shape for i in ids] == [(3, 1), (3, 4), (3, 16)]
    assert all(i.dtype == np.int32 and i.min() >= 0 and i.max() < 32 for i in ids)


def test_decode_gives_images_of_the_configured_size_in_range(tokenizer):
    images = np.asarray(tokenizer.decode(random_ids(tokenizer)))
    assert images.shape == (3, 3, *tokenizer.config.image_size) and np.abs(images).max() <= 1


def test_progressive_decoding_ends_with_the_whole_image(tokenizer):
    ids = random_ids(tokenizer)
    progressive = tokenizer.decode_progressive(ids)
    assert len(progressive) == 3
    np.testing.assert_array_equal(progressive[-1].asnumpy(), tokenizer.decode(ids).asnumpy())


def test_adding_scales_one_by_one_equals_decoding_at_once(tokenizer):
    ids, latent = random_ids(tokenizer), None
    inputs = []
    for k, ids_bl in enumerate(ids):
        latent = tokenizer.add_scale(latent, ids_bl, k)
        if k < 2:
            inputs.append(np.asarray(tokenizer.scale_input(latent, k + 1)))
    image = np.asarray(tokenizer.decode_latent(latent)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(image, np.asarray(tokenizer.decode(ids)), atol=1e-5)
    teacher = np.asarray(tokenizer.teacher_inputs(ids))
    assert teacher.shape == (3, tokenizer.config.schedule.length - 1, 8)
    np.testing.assert_allclose(np.concatenate(inputs, 1), teacher, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_nearest_code_is_at_the_smallest_distance(tokenizer, seed):
    vectors = np.random.default_rng(seed).standard_normal((1, 16, 8)).astype(np.float32)
    codes = tokenizer.quantize.embedding.weight.asnumpy()
    ids = tokenizer.quantize.nearest(Tensor(vectors)).asnumpy()[0]
    distances = ((vectors[0][:, None] - codes[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(16), ids], distances.min(1), rtol=1e-4)


def test_a_saved_tokenizer_loads_to_the_same_weights_and_tokens(tokenizer, images_bcyx, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tokenizer.save(first)
    loaded = Tokenizer.load(first)
    loaded.save(second)
    assert loaded.config == tokenizer.config
    weights, weights_again = load_file(first), load_file(second)
    assert weights.keys() == weights_again.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, weights_again[name])
    for a, b in zip(tokenizer.encode(images_bcyx), loaded.encode(images_bcyx), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_non_square_images_go_there_and_back():
    tokenizer = Tokenizer(tiny.tokenizer(scales=(1, (1, 2), (2, 4))))
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 8)).astype(np.float32)
    assert np.asarray(tokenizer.decode(tokenizer.encode(images))).shape == (1, 3, 4, 8)


def test_the_training_pass_reconstructs_what_encode_and_decode_do(
    tokenizer, images_bcyx, images_byxc
):
    features, loss, ids_bl, vectors_blz = tokenizer.construct(images_byxc)
    output = tokenizer.reconstruction(features).transpose(0, 3, 1, 2)
    expected_vectors = np.concatenate(tokenizer.residual_vectors(images_bcyx), 1)
    np.testing.assert_allclose(vectors_blz.asnumpy(), expected_vectors, atol=1e-5)
    expected_ids_bl = tokenizer.encode_sequence(images_bcyx)
    np.testing.assert_array_equal(ids_bl.asnumpy(), expected_ids_bl)
    expected = np.asarray(tokenizer.decode(expected_ids_bl))
    np.testing.assert_allclose(np.clip(np.asarray(output), -1, 1), expected, atol=1e-4)
    assert float(loss) > 0


def test_a_sequence_of_ids_means_the_same_as_its_scales(tokenizer, images_bcyx):
    ids, ids_bl = tokenizer.encode(images_bcyx), tokenizer.encode_sequence(images_bcyx)
    np.testing.assert_array_equal(np.concatenate(ids, 1), ids_bl)
    for method in (tokenizer.decode, tokenizer.teacher_inputs):
        np.testing.assert_array_equal(method(ids).asnumpy(), method(ids_bl).asnumpy())
    for a, b in zip(
        tokenizer.decode_progressive(ids), tokenizer.decode_progressive(ids_bl), strict=True
    ):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())
    with pytest.raises(InputError, match="ids have shape"):
        tokenizer.decode(ids_bl[:, 1:])


def test_images_mean_the_same_whatever_the_order_of_their_memory(
    tokenizer, images_bcyx, images_byxc
):
    view_bcyx = images_byxc.asnumpy().transpose(0, 3, 1, 2)
    assert view_bcyx.strides != images_bcyx.strides
    ids_bl, expected_bl = map(tokenizer.encode_sequence, (view_bcyx, images_bcyx))
    np.testing.assert_array_equal(ids_bl, expected_bl)


def test_a_dropped_scale_leaves_the_reconstruction_of_the_scales_before(
    tokenizer, images_bcyx, images_byxc
):
    kept_kb = np.array([[1] * 3, [0] * 3, [0] * 3], np.float32)
    features, *_ = tokenizer.construct(images_byxc, 0.25, Tensor(kept_kb))
    output = np.asarray(tokenizer.reconstruction(features).transpose(0, 3, 1, 2))
    expected = np.asarray(tokenizer.decode_progressive(tokenizer.encode(images_bcyx))[0])
    np.testing.assert_allclose(np.clip(output, -1, 1), expected, atol=1e-4)


def test_scales_left_out_of_an_image_add_nothing_to_its_loss(tokenizer, images_byxc):
    kept_kb = np.zeros((3, 3), np.float32)
    assert float(tokenizer.construct(images_byxc, 0.25, Tensor(kept_kb))[1]) == 0
    kept_kb[0] = 1
    first = float(tokenizer.construct(images_byxc, 0.25, Tensor(kept_kb))[1])
    assert 0 < first < float(tokenizer.construct(images_byxc, 0.25)[1])


def test_the_length_of_a_code_does_not_matter_with_znorm(tokenizer, images_bcyx):
    config = dataclasses.replace(tokenizer.config, using_znorm=True)
    ids = []
    for factor in (1.0, 7.0):
        tokenizer = Tokenizer(config, 0)
        codes = tokenizer.quantize.embedding.weight
        longer_v1 = np.ones((config.vocab_size, 1), np.float32)
        longer_v1[::3] = factor
        codes.set_data(Tensor(codes.asnumpy() * longer_v1))
        ids.append(np.asarray(tokenizer.encode(images_bcyx)[0]))
    np.testing.assert_array_equal(*ids)


IMPOSSIBLE = {"vocab_size": 1, "latent_channels": 0, "channels": 33, "res_blocks": 0}
IMPOSSIBLE |= {"phi_count": "4", "scales": (3, 2), "channel_multipliers": ()}


@pytest.mark.parametrize(("field", "value"), [*IMPOSSIBLE.items(), ("channel_multipliers", (0,))])
def test_an_impossible_configuration_is_an_error_that_names_the_field(field, value):
    with pytest.raises(InputError, match=field):
        TokenizerConfig(**{field: value})


def test_the_published_tokenizer_reads_256_px_images():
    config = TokenizerConfig()
    assert (config.image_size, config.downsampling, config.schedule.length) == ((256, 256), 16, 680)


def test_one_hot_weights_add_what_the_id_adds(tokenizer):
    ids = random_ids(tokenizer)[1]
    one_hot = np.eye(tokenizer.vocab_size, dtype=np.float32)[ids]
    by_id, by_weight = (np.asarray(tokenizer.add_scale(None, t, 1)) for t in (ids, one_hot))
    np.testing.assert_allclose(by_weight, by_id, atol=1e-6)


def test_the_scales_share_the_published_refinements():
    assert [phi_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_index(k, 10, 1) for k in range(10)] == [0] * 10
    for count in (3, 6, 10):
        assert [phi_index(k, count, count) for k in range(count)] == list(range(count))


def test_without_its_encoder_it_decodes_the_same_and_refuses_the_rest(tmp_path):
    whole = Tokenizer(tiny.tokenizer(), seed=3)
    whole.save(path := tmp_path / "t.safetensors")
    rest = Tokenizer.load(path, encoder=False)
    ids = [np.zeros((1, s * s), np.int32) for s in tiny.SCALES]
    np.testing.assert_array_equal(rest.decode(ids).asnumpy(), whole.decode(ids).asnumpy())
    assert rest.checksum() == whole.checksum() and rest.belongs_to(whole.checksum())
    images = np.zeros((1, 3, 6, 6), np.float32)
    for call in (lambda: rest.encode(images), lambda: rest.save(tmp_path / "other.safetensors")):
        with pytest.raises(InputError, match="loaded with encoder=False; expected a whole one"):
            call()
