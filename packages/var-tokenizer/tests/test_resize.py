import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from var_tokenizer.resize import area_matrix, bicubic_matrix

SIZE = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(SIZE, SIZE)
def test_resizing_keeps_a_constant_map(source, target):
    for matrix in (area_matrix(source, target), bicubic_matrix(source, target)):
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


@given(SIZE)
def test_resizing_to_the_same_size_changes_nothing(size):
    identity = np.eye(size[0] * size[1], dtype=np.float32)
    np.testing.assert_array_equal(area_matrix(size, size), identity)
    np.testing.assert_array_equal(bicubic_matrix(size, size), identity)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_area_averaging_by_a_whole_factor_is_the_block_mean(rows, columns, down_y, down_x):
    source = (rows * down_y, columns * down_x)
    map_yx = np.random.default_rng(0).standard_normal(source).astype(np.float32)
    blocks = map_yx.reshape(rows, down_y, columns, down_x).mean((1, 3))
    resized = area_matrix(source, (rows, columns)) @ map_yx.ravel()
    np.testing.assert_allclose(resized, blocks.ravel(), atol=1e-6)


@given(SIZE, SIZE)
def test_resizing_a_mirrored_map_mirrors_the_result(source, target):
    map_yx = np.random.default_rng(0).standard_normal(source).astype(np.float32)
    matrix = bicubic_matrix(source, target)
    mirrored = (matrix @ map_yx[:, ::-1].ravel()).reshape(target)
    expected = (matrix @ map_yx.ravel()).reshape(target)[:, ::-1]
    np.testing.assert_allclose(mirrored, expected, atol=1e-5)


def test_bicubic_differs_from_pillows_only_by_its_sharpness():
    # Pillow's kernel has a = -0.5 where ours has the a = -0.75 of PyTorch
    map_yx = np.random.default_rng(1).uniform(0, 1, (6, 6)).astype(np.float32)
    ours = (bicubic_matrix((6, 6), (12, 12)) @ map_yx.ravel()).reshape(12, 12)
    theirs = np.asarray(Image.fromarray(map_yx).resize((12, 12), Image.Resampling.BICUBIC))
    assert np.abs(ours - theirs)[3:-3, 3:-3].max() < 0.15
