"""``python -m var_train.evaluate``: measures a tokenizer on images, judges generated images by
real ones, or trains a classifier of real ones as a judge."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from var_tokenizer import Tokenizer
from var_tokenizer.common import (
    check_integer,
    fewer_images,
    images_that_fit,
    needing_memory,
)
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import working

from var_train.commands.classifying import ClassifierTrainingConfig, make_classifier
from var_train.commands.judgement import Judgement, SampleEvaluationConfig, evaluate_samples
from var_train.data.image_sources import load_folder
from var_train.judging.measuring import figure_names
from var_train.judging.networks import load_network
from var_train.reports.images import save_reconstructions
from var_train.reports.json_files import write_report
from var_train.reports.progress_bars import step_bar
from var_train.reports.tokenizer_quality import TokenizerFigures, measure_tokenizer

_LARGEST_BATCH = 50


@dataclass(frozen=True)
class TokenizerEvaluationConfig:
    """Measure a tokenizer on images: PSNR, SSIM, codes in use, rate, and a sheet to look at.

    Writes OUT/tokenizer.json and OUT/reconstructions.png.
    """

    tokenizer: Path
    """A tokenizer, .safetensors."""
    data: Path
    """A folder of images, searched to any depth, or shards, quoted: 'val-{00..49}.tar'."""
    out: Path
    """The folder for the figures and the sheet."""
    batch: int = 0
    """Images at once; 0 chooses what fits into free memory, at most 50."""
    feature_network: Path | None = None
    """EffLite0 (the extra [judge]) or a network, .safetensors, whose features give a Frechet
    distance of its name: FD-EffLite0; FID is that of the Inception of the papers alone."""

    def __post_init__(self) -> None:
        """Raises InputError for a batch below 0."""
        check_integer("batch", self.batch, 0)


def evaluate_tokenizer(config: TokenizerEvaluationConfig) -> TokenizerFigures:
    """Runs the command; raises InputError for unusable files before it measures."""
    tokenizer = Tokenizer.load(config.tokenizer)
    network = None if config.feature_network is None else load_network(config.feature_network)
    images = load_folder(config.data, tokenizer.config.image_size)
    batch = config.batch or images_that_fit(tokenizer.config.bytes_per_image, _LARGEST_BATCH)
    batch = min(batch, len(images))
    doing, remedy = f"measuring {batch} images at once", fewer_images("--batch", batch)
    with needing_memory(doing, remedy):
        with step_bar("measuring", len(images), unit="images") as bar:
            figures = measure_tokenizer(
                tokenizer,
                images,
                batch,
                network=network,
                measured=lambda n: bar.advance(n, steps=n),
            )
        with working("drawing the sheet"):
            save_reconstructions(tokenizer, images, config.out / "reconstructions.png", batch)
    write_report(config.out / "tokenizer.json", figures.report())
    return figures


def _show(figures: TokenizerFigures) -> None:
    table = Table("scale", "PSNR after it, dB", "codes used", "perplexity")
    for k, (rows, columns) in enumerate(figures.scale_sizes):
        table.add_row(
            f"{rows}x{columns}",
            f"{figures.scale_psnr[k]:.2f}",
            str(figures.scale_codes_used[k]),
            f"{figures.scale_perplexity[k]:.1f}",
        )
    console = Console()
    console.print(table)
    frechet = "" if figures.frechet is None else f"  {figures.network} {figures.frechet:.3f}"
    console.print(
        f"{figures.images} images: PSNR {figures.psnr:.2f} dB  SSIM {figures.ssim:.3f}  "
        f"codebook usage {figures.codebook_usage:.3f}  {figures.bits:.0f} bits an image "
        f"({figures.entropy_bits:.0f} by entropy){frechet}"
    )


def _show_judgement(judgement: Judgement) -> None:
    table = Table("figure", "samples", "real halves", caption="Real halves: of the reference.")
    figures = dataclasses.asdict(judgement.figures)
    floor = {} if judgement.floor is None else dataclasses.asdict(judgement.floor)
    for field, name in figure_names(judgement.network).items():
        if figures[field] is not None:
            real = floor.get(field)
            table.add_row(
                Text(name), f"{figures[field]:.5g}", "" if real is None else f"{real:.5g}"
            )
    Console().print(table)


def _run(
    config: TokenizerEvaluationConfig | SampleEvaluationConfig | ClassifierTrainingConfig,
) -> None:
    if isinstance(config, ClassifierTrainingConfig):
        accuracy = make_classifier(config)
        Console().print(f"held-out images known: {accuracy:.4f}")
    elif isinstance(config, SampleEvaluationConfig):
        _show_judgement(evaluate_samples(config))
    else:
        _show(evaluate_tokenizer(config))


def main() -> None:
    """The command; see ``run_command``."""
    run_command(
        {
            "tokenizer": TokenizerEvaluationConfig,
            "samples": SampleEvaluationConfig,
            "classifier": ClassifierTrainingConfig,
        },
        "python -m var_train.evaluate",
        _run,
        "interrupted; the same command measures from the beginning",
        description=__doc__,
    )


if __name__ == "__main__":
    main()
