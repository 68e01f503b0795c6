"""A training that begins in PyTorch, goes on in MindSpore and ends in PyTorch."""

import json

import numpy as np
import pytest
import tiny
from mindspore import Tensor
from var_convert.training import convert_training
from var_tokenizer import Tokenizer
from var_train import (
    AdamWConfig,
    LoopConfig,
    MetricsLog,
    TokenSet,
    TransformerStageConfig,
    TransformerTraining,
    is_decayed,
    train_stage,
)
from var_transformer import Transformer

torch = pytest.importorskip("torch")

from var_convert.reference import TorchTransformer  # noqa: E402

RATE, BETAS, DECAY, CLIP = 2e-3, (0.9, 0.95), 0.05, 2.0


@pytest.fixture(autouse=True)
def one_thread():
    """At this size, threads that wait for one another on busy cores take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Training:
    """The same images in each step, a rate that stays, and no dropout: nothing is random."""

    def __init__(self, folder, images, **size):
        self.folder, self.images = folder, images
        self.tokenizer = Tokenizer(tiny.tokenizer(), 0)
        self.config, rng = tiny.transformer(**size), np.random.default_rng(0)
        length = self.config.schedule.length
        ids_nl = rng.integers(self.config.vocab_size, size=(images, length)).astype(np.int32)
        labels_n = (np.arange(images) % self.config.num_classes).astype(np.int32)
        self.tokens = TokenSet(ids_nl, labels_n)
        start = Transformer(self.config, 0)
        start.save(folder / "start.safetensors")
        self.decayed = {p.name for p in start.trainable_params() if is_decayed(p)}
        inputs_blz = self.tokenizer.training_inputs(Tensor(ids_nl)).asnumpy()
        self.batch = (
            torch.from_numpy(labels_n).long(),
            torch.from_numpy(inputs_blz),
            torch.from_numpy(ids_nl).long(),
        )

    def in_pytorch(self, steps, source=None, target=None, moments=True):
        """The losses of ``steps`` steps of a trainer as anyone would write it."""
        model = TorchTransformer.from_file(self.folder / "start.safetensors").train()
        named = dict(model.named_parameters())
        decayed = [p for name, p in named.items() if name in self.decayed]
        others = [p for name, p in named.items() if name not in self.decayed]
        groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed}]
        adamw = torch.optim.AdamW(groups, RATE, BETAS, weight_decay=DECAY)
        done, losses = 0, []
        if source is not None:
            saved = torch.load(source, weights_only=True)
            model.load_state_dict(saved["model"])
            done = saved["step"]
            if moments:
                adamw.load_state_dict(saved["optimizer"])
        labels_b, inputs_blz, ids_bl = self.batch
        for _ in range(steps):
            logits_blv = model(labels_b, inputs_blz)
            loss = torch.nn.functional.cross_entropy(logits_blv.flatten(0, 1), ids_bl.flatten())
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            adamw.step()
            losses.append(loss.item())
        if target is not None:
            state = {"model": model.state_dict(), "optimizer": adamw.state_dict()}
            torch.save(state | {"step": done + steps}, target)
        return losses

    def here(self, steps, out):
        """The losses of the steps up to ``steps``, from the checkpoint in ``out`` on."""
        optimizer = AdamWConfig(
            learning_rate=RATE,
            betas=BETAS,
            weight_decay=DECAY,
            clip=CLIP,
            rate_schedule="lin00",
            warmup=0.0,
            final=1.0,
        )
        config = TransformerStageConfig(
            epochs=steps,
            batch=self.images,
            optimizer=optimizer,
            condition_drop=0.0,
            drop_path=0.0,
            samples_per_class=0,
        )
        model, tokens = Transformer(self.config, 1), self.tokens
        stage = TransformerTraining(model, self.tokenizer, tokens, tokens, config, seed=0)
        metrics = MetricsLog(out, resume=True)
        train_stage(stage, out, metrics, LoopConfig(validations=1), {})
        metrics.close()
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["stage"] == "transformer"]


def losses_of(training, steps):
    """Of ``3 * steps`` steps: those that stayed in PyTorch, and those that changed twice."""
    begun, over = training.folder / "begun.pth", training.folder / "over.pth"
    out = training.folder / "run"
    stayed = training.in_pytorch(3 * steps)
    changed = training.in_pytorch(steps, target=begun)
    convert_training(begun, out)
    changed += training.here(2 * steps, out)
    (checkpoint,) = (out / "checkpoints" / "transformer").glob(f"*{2 * steps}.safetensors")
    convert_training(checkpoint, over)
    changed += training.in_pytorch(steps, source=over)
    return stayed, changed


def test_a_training_that_changes_its_framework_twice_has_the_losses_of_one_that_stayed(
    tmp_path, caplog
):
    stayed, changed = losses_of(Training(tmp_path, 4, depth=1), 2)
    assert len(stayed) == len(changed) == 6 and stayed[-1] < stayed[0] - 0.01
    assert np.abs(np.subtract(stayed, changed)).max() < 1e-4
    assert "settings and data were the same is not on record" in caplog.text


@pytest.mark.slow
def test_a_long_training_that_changes_its_framework_twice_stays_within_1e_3(tmp_path):
    training = Training(tmp_path, 16, depth=2, width=64, heads=4)
    stayed, changed = losses_of(training, 30)
    assert len(stayed) == len(changed) == 90 and stayed[-1] < 0.7 * stayed[0]
    assert np.abs(np.subtract(stayed, changed)).max() < 1e-3
    # what carries it: without the moments the losses are others
    forgot = training.in_pytorch(30, source=tmp_path / "over.pth", moments=False)
    assert np.abs(np.subtract(stayed[-30:], forgot)).max() > 1e-2
