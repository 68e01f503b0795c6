"""What a run begins with: its data, and a folder in which it can continue."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import mindspore as ms
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, quoted, snapshot_folder
from var_tokenizer.common.progress import working

from var_train.commands.run_config import RunConfig
from var_train.data.batches import steps_of
from var_train.data.cache_index import SPLITS
from var_train.data.digits import load_digits_split
from var_train.data.image_sources import ImageFolder, ImageSet, load_image_tree
from var_train.data.resume_check import DataRecord
from var_train.data.token_cache import TokenCache
from var_train.judging.networks import network_digest
from var_train.parallel import workers
from var_train.reports.json_files import changed_settings, record_settings
from var_train.reports.metrics_log import MetricsLog
from var_train.training.checkpoints import CheckpointFolder, check_disk
from var_train.training.loop import check_resumable

log = logging.getLogger(__name__)

StageName = Literal["tokenizer", "transformer"]
Source = ImageSet | ImageFolder | TokenCache


def load_data(config: RunConfig, tokenizer: Tokenizer) -> tuple[Source, Source]:
    """The training and the held-out data: a token cache, an image tree or the digits.

    Raises InputError if it is unusable or does not fit the tokenizer.
    """
    if config.tokens is not None:
        with working("checking the tokens", silent=workers.rank() > 0):
            train, val = (TokenCache(config.tokens, split, tokenizer) for split in SPLITS)
        if config.random_crops and not train.crops:
            log.warning(
                "%s: holds no random crops, which the settings ask for (var_train.tokenize --crops "
                "10 gives them); training on the same tokens in each epoch",
                quoted(config.tokens),
            )
        return train, val
    size = tokenizer.config.image_size
    if config.data is not None:
        return load_image_tree(
            config.data, size, val_fraction=config.val_fraction, random_crops=config.random_crops
        )
    if size != (32, 32):
        raise InputError(
            f"the digits are (32, 32) images; expected a tokenizer of that size, not {size}"
        )
    if config.random_crops:
        log.info("the digits have the size of the model: they are not cropped")
    return load_digits_split()


def begin_run(
    config: RunConfig,
    given: Mapping[str, object],
    train: Source,
    val: Source,
    sizes: Mapping[str, int],
) -> tuple[MetricsLog, dict[StageName, dict[str, object]], DataRecord | None]:
    """Checks that each stage can continue from its checkpoint in OUT; then writes the first files.

    given: settings that come from files. sizes: of a checkpoint of each stage. Returns the metrics,
    the settings of each stage, and the record of the images.

    Raises InputError for checkpoints of other settings or data, for data that are others on another
    worker, and for a disk that cannot hold the checkpoints of this run, before anything is written.
    """
    record, data = _describe(train, val)
    workers.check_alike({"the data": data, "the weights to start from": dict(given)})
    names: tuple[StageName, ...] = (
        ("tokenizer", "transformer") if config.stage == "all" else (config.stage,)
    )
    settings = {name: _settings(config, name, {**given, **data}) for name in names}
    steps: dict[str, int] = {}
    for name in names:
        stage = getattr(config, f"train_{name}")
        steps[name] = steps_of(stage.epochs, len(train), stage.batch)
    done: dict[str, int | None] = {}
    if config.resume:
        done = {n: check_resumable(config.out, n, settings[n], record, steps[n]) for n in names}
        follows = CheckpointFolder(snapshot_folder(config.out, "transformer")).peek()
        if config.trains_tokenizer and follows and done["tokenizer"] != steps["tokenizer"]:
            raise InputError(
                f"{quoted(config.out)}: holds checkpoints of a transformer, but the tokenizer that "
                f"it belongs to has {done['tokenizer'] or 'none'} of {steps['tokenizer']} steps; "
                "expected all (--stage transformer goes on with OUT/tokenizer.safetensors, "
                "--no-resume starts from the beginning)"
            )
    kept = {n: config.loop.most_checkpoints(steps[n]) for n in names}
    check_disk(config.out, {n: (kept[n], sizes[n]) for n in names}, config.loop.keep)
    folders = {name: snapshot_folder(config.out, name) for name in names}
    if record is not None:
        record.watch((train, val), [folders[n] for n in names if done.get(n) is not None])
    workers.wait_for_all()  # until every worker has read what worker 0 is about to write
    metrics = MetricsLog(config.out, config.resume)
    if workers.rank() == 0:
        for folder in folders.values():
            if not config.resume:
                CheckpointFolder(folder).clear()
            if record is not None:
                record.save(folder)
        all_settings = asdict(config) | _machine()
        if config.resume:
            metrics.write_changes(changed_settings(config.out, all_settings), done)
        record_settings(config.out, all_settings)
    return metrics, settings, record


def _machine() -> dict[str, object]:
    """What a run computes with, which may change from one command to the next."""
    return {
        "workers": workers.size(),
        "device": ms.get_context("device_target"),
        "mindspore": ms.__version__,
    }


def _settings(
    config: RunConfig, stage: StageName, given: Mapping[str, object]
) -> dict[str, object]:
    """What the training of a stage depends on, as JSON: the contents of files, not their paths."""
    parts: dict[str, Any] = {
        stage: asdict(getattr(config, stage)),
        f"train_{stage}": asdict(getattr(config, f"train_{stage}")),
        "seed": config.seed,
        "random_crops": config.random_crops and config.data is not None,
        **given,
    }
    if stage == "transformer":  # it has no effect on the results
        del parts["train_transformer"]["shard_optimizer"]
        unused = {"cca", "gft"} - {config.train_transformer.objective}
        if config.train_transformer.objective == "likelihood":
            unused.add("objective")  # as before there were others
        if not config.train_transformer.lora.rank:
            unused.add("lora")
        parts["train_transformer"] |= dict.fromkeys(unused)
    else:
        network = config.train_tokenizer.losses.feature_network
        if network is not None:
            parts["train_tokenizer"]["losses"]["feature_network"] = network_digest(network)
    return json.loads(json.dumps(parts, default=str))


def _describe(train: Source, val: Source) -> tuple[DataRecord | None, dict[str, object]]:
    """The image files, and the settings that identify what a run is trained on; None for digits."""
    if isinstance(train, TokenCache) and isinstance(val, TokenCache):
        tokens = {
            "classes": list(train.classes),
            "images": [len(train), len(val)],
            "digests": [train.digest, val.digest],
        }
        record = _record(train, val) if workers.rank() == 0 else None  # it only names what changed
        return record, {"data": None, "tokens": tokens}
    record = _record(train, val)
    return record, {"data": record and record.settings, "tokens": None}


def _record(train: Source, val: Source) -> DataRecord | None:
    files = (train.files, val.files)
    return None if files[0] is None or files[1] is None else DataRecord.of(files[0], files[1])
