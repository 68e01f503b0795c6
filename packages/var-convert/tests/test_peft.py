"""Adapters of `peft` on the PyTorch reference, here; ours, there; and `var-convert merge`."""

import numpy as np
import pytest
import tiny
from var_convert import convert
from var_convert.cli import main
from var_tokenizer.common import InputError
from var_transformer import (
    LoraConfig,
    LowRankWeights,
    Transformer,
    WeightedAdapter,
    load_adapter,
    merge_adapters,
    save_adapter,
)

torch = pytest.importorskip("torch")

from mindspore import Tensor, ops  # noqa: E402
from var_convert.reference import TorchTransformer  # noqa: E402

CONFIG = tiny.transformer()
TARGETS = ["mat_qkv", "proj", "fc1", "fc2", "ada_lin.1", "word_embed", "head"]
LABELS = np.array([0, 4, 5], np.int64)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    shape = (len(LABELS), CONFIG.schedule.length - 1, CONFIG.latent_channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def native(files, tmp_path):
    """The file of the transformer that ``files`` has."""
    return files[".safetensors"]


def torch_logits(model, inputs) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(LABELS), torch.tensor(inputs)).numpy()


def relative(ours, theirs) -> float:
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("variant", ["plain", "rslora", "rows", "table"])
def test_an_adapter_of_peft_gives_equal_logits_here(native, inputs, tmp_path, variant):
    peft = pytest.importorskip("peft")
    more = {
        "plain": {},
        "rslora": {"use_rslora": True, "rank_pattern": {"fc1": 2}},
        "rows": {"trainable_token_indices": {"class_emb": [4, 5]}},
        "table": {"modules_to_save": ["class_emb"]},
    }[variant]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **more)
    theirs = peft.get_peft_model(TorchTransformer.from_file(native), config)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, values in theirs.named_parameters():
            if values.requires_grad:
                values.add_(0.2 * torch.randn(values.shape, generator=noise))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = Transformer.load(native)
    plain = ours.logits(LABELS, inputs).asnumpy() if variant == "plain" else None
    ours = Transformer.load(native)
    merge_adapters(ours, [WeightedAdapter(load_adapter(tmp_path / "adapter"))])
    expected = torch_logits(theirs, inputs)
    assert relative(ours.logits(LABELS, inputs).asnumpy(), expected) < 1e-5
    assert plain is None or relative(plain, expected) > 0.05


def test_peft_reads_an_adapter_of_ours_with_its_new_class(native, inputs, tmp_path):
    peft = pytest.importorskip("peft")
    model = Transformer.load(native)
    weights = LowRankWeights(model, LoraConfig(rank=3, alpha=7.0, targets=("*",)), 0, ("cat",))
    rng = np.random.default_rng(2)
    for parameter in weights.parameters:
        ops.assign(parameter, Tensor(0.2 * rng.standard_normal(parameter.shape), parameter.dtype))
    save_adapter(weights.adapter(), tmp_path / "adapter", 7.0, CONFIG.num_classes)
    ours = model.logits(LABELS, inputs).asnumpy()  # 5 is the new class
    grown = TorchTransformer(model.config)
    state = TorchTransformer.from_file(native).state_dict()
    table_nc = state["class_emb.weight"]
    state["class_emb.weight"] = torch.cat([table_nc[:-1], torch.zeros(1, 32), table_nc[-1:]])
    grown.load_state_dict(state)
    theirs = peft.PeftModel.from_pretrained(grown, tmp_path / "adapter")
    assert relative(ours, torch_logits(theirs, inputs)) < 1e-5


def test_gradients_of_an_adapter_are_those_of_autograd(native, inputs):
    import mindspore as ms

    model, reference = Transformer.load(native), TorchTransformer.from_file(native)
    weights = LowRankWeights(model, LoraConfig(rank=3, alpha=7.0, targets=("*",)), 0)
    rng = np.random.default_rng(3)
    for parameter in weights.parameters:
        ops.assign(parameter, Tensor(0.2 * rng.standard_normal(parameter.shape), parameter.dtype))
    shape = (len(LABELS), CONFIG.schedule.length, CONFIG.vocab_size)
    direction = rng.standard_normal(shape).astype(np.float32)
    small = {p.name: torch.tensor(p.asnumpy(), requires_grad=True) for p in weights.parameters}
    state = dict(reference.named_parameters())
    for name in weights.adapter().pairs:
        a, b = small[f"{name}.lora_A.weight"], small[f"{name}.lora_B.weight"]
        state[f"{name}.weight"] = state[f"{name}.weight"].detach() + 7.0 / 3 * b @ a
    of = (torch.tensor(LABELS), torch.tensor(inputs))
    logits_blv = torch.func.functional_call(reference, state, of)
    (logits_blv * torch.tensor(direction)).sum().backward()
    factor = Tensor(direction)

    def objective(labels_b, inputs_blz):
        return (model.construct(labels_b, inputs_blz) * factor).sum()

    of_parameters = ms.value_and_grad(objective, None, ms.ParameterTuple(weights.parameters))

    @ms.jit
    def gradients(labels_b, inputs_blz):
        return of_parameters(labels_b, inputs_blz)

    _, found = gradients(Tensor(LABELS.astype(np.int32)), Tensor(inputs))
    for parameter, gradient in zip(weights.parameters, found, strict=True):
        expected = small[parameter.name].grad.numpy()
        assert relative(gradient.asnumpy(), expected) < 1e-4, parameter.name


@pytest.fixture
def adapters(native, tmp_path):
    """The words for two adapters, of which one brings a class, and what they name."""
    found = []
    for n, classes in enumerate((("cat",), ())):
        weights = LowRankWeights(Transformer.load(native), LoraConfig(rank=2), n, classes)
        for parameter in weights.parameters:
            ops.assign(parameter, Tensor(np.full(parameter.shape, 0.1 + n), parameter.dtype))
        save_adapter(weights.adapter(), tmp_path / f"adapter{n}", 16.0, CONFIG.num_classes)
        found.append(tmp_path / f"adapter{n}")
    return found


def test_merge_writes_a_native_model_with_all_adapters_in_its_weights(native, adapters, tmp_path):
    words = [f"--adapter={adapters[0]}", f"--adapter={adapters[1]}:0.25"]
    out = tmp_path / "merged.safetensors"
    assert main(["merge", str(native), *words, str(out)]) == 0
    merged, expected = Transformer.load(out), Transformer.load(native)
    given = zip(adapters, (1.0, 0.25), strict=True)
    merge_adapters(expected, [WeightedAdapter(load_adapter(path), w) for path, w in given])
    assert merged.class_names == ("0", "1", "2", "3", "4", "cat")
    theirs = expected.published_tensors()
    for name, array in merged.published_tensors().items():
        np.testing.assert_array_equal(array, theirs[name], name)


def test_merge_refuses_without_a_trace(native, adapters, tmp_path, refused):
    model, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    Transformer(tiny.transformer(width=64), 0).save(model)
    assert "which is (192, 64) in the model" in refused(
        "merge", model, "--adapter", adapters[0], out
    )
    assert "no adapter is given" in refused("merge", native, out)
    assert "--force" in refused("merge", native, "--adapter", adapters[0], model)
    assert "the native format" in refused("merge", native, "--adapter", adapters[0], "out.pth")


def test_a_checkpoint_of_an_adapter_is_not_taken_for_a_model(tmp_path):
    from var_tokenizer.common import Snapshot, write_snapshot

    told = {"format": "var-mindspore", "kind": "LoRA adapter without its base"}
    path = tmp_path / "step-000000001.safetensors"
    write_snapshot(path, Snapshot(1, {"adapter/a": np.ones(1, np.float32)}, {}, told))
    with pytest.raises(InputError, match="LoRA adapter without its base"):
        convert(path, tmp_path / "out.pth")
    with pytest.raises(InputError, match="holds a LoRA adapter without its base; expected a tr"):
        Transformer.load(path)
