"""The folder of a run: whether it can continue, and what is written before training begins."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from var_tokenizer.common import InputError, quoted

from var_train.commands.run_config import RunConfig
from var_train.commands.run_data import Source, describe_data
from var_train.parallel import workers
from var_train.reports.metrics_log import MetricsLog
from var_train.reports.settings_record import record_settings
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.loop import check_resumable, stage_folder

StageName = Literal["tokenizer", "transformer"]


def begin_run(
    config: RunConfig,
    given: Mapping[str, object],
    train: Source,
    val: Source,
    tokenizer_steps: int,
) -> tuple[MetricsLog, dict[StageName, dict[str, object]]]:
    """Checks that each stage can continue from its checkpoint in OUT; then writes the first files.

    given: settings that come from files. tokenizer_steps: all steps of the tokenizer's stage, if
    it is trained. Returns the metrics and the settings of each stage.

    Raises InputError for checkpoints of other settings or data, before anything is written.
    """
    record, data = describe_data(train, val)
    names: tuple[StageName, ...] = (
        ("tokenizer", "transformer") if config.stage == "all" else (config.stage,)
    )
    settings = {name: _settings(config, name, {**given, **data}) for name in names}
    if config.resume:
        done = {n: check_resumable(config.out, n, settings[n], record) for n in names}
        follows = CheckpointFolder(stage_folder(config.out, "transformer")).peek()
        if config.trains_tokenizer and follows and done["tokenizer"] != tokenizer_steps:
            raise InputError(
                f"{quoted(config.out)}: holds checkpoints of a transformer, but the tokenizer that "
                f"it belongs to has {done['tokenizer'] or 'none'} of {tokenizer_steps} steps; "
                "expected all (--stage transformer goes on with OUT/tokenizer.safetensors, "
                "--no-resume starts from the beginning)"
            )
    workers.wait_for_all()  # until every worker has read what worker 0 is about to write
    metrics = MetricsLog(config.out, config.resume)
    if workers.rank() == 0:
        for folder in (stage_folder(config.out, name) for name in names):
            if not config.resume:
                CheckpointFolder(folder).clear()
            if record is not None:
                record.save(folder)
        record_settings(config.out, asdict(config))
    return metrics, settings


def _settings(
    config: RunConfig, stage: StageName, given: Mapping[str, object]
) -> dict[str, object]:
    """What the training of a stage depends on, as JSON: the contents of files, not their paths."""
    parts: dict[str, Any] = {
        stage: asdict(getattr(config, stage)),
        f"train_{stage}": asdict(getattr(config, f"train_{stage}")),
        "seed": config.seed,
        **given,
    }
    if stage == "transformer":  # it has no effect on the results
        del parts["train_transformer"]["shard_optimizer"]
    else:
        network = config.train_tokenizer.losses.feature_network
        if network is not None:
            with network.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            parts["train_tokenizer"]["losses"]["feature_network"] = digest
    return json.loads(json.dumps(parts, default=str))
