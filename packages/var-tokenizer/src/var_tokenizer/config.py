"""The architecture of a tokenizer."""

from dataclasses import dataclass

from var_tokenizer.common.checks import check_flag, check_integer, is_integer
from var_tokenizer.common.errors import InputError
from var_tokenizer.schedule import SCALES_256, Scale, ScaleSchedule

GROUPS = 32  # of every group norm, as published


@dataclass(frozen=True)
class TokenizerConfig:
    """Architecture of the multi-scale VQ autoencoder. The defaults are the published sizes."""

    vocab_size: int = 4096
    """Number of codes in the codebook, which all scales share."""
    latent_channels: int = 32
    """Width z of the latent map and of a code."""
    channels: int = 160
    """Width that ``channel_multipliers`` multiply; that of each level is a multiple of 32."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level, in ``channels``; each level after the first halves the resolution."""
    res_blocks: int = 2
    """Residual blocks in each level of the encoder; the decoder has one more."""
    phi_count: int = 4
    """Number of 3x3 convolutions phi, shared by the K scales: 1, 4 as published, or K, say."""
    scales: tuple[Scale, ...] = SCALES_256
    """Sizes of the token maps, coarse to fine; the last is that of the latent map."""
    using_znorm: bool = False
    """Look up the code at the smallest angle instead of the smallest distance."""

    def __post_init__(self) -> None:
        """Raises an InputError that names the field, its value and what is allowed."""
        object.__setattr__(self, "scales", self.schedule.scales)
        for field in ("vocab_size", "latent_channels", "channels", "res_blocks", "phi_count"):
            least = 2 if field == "vocab_size" else 1
            object.__setattr__(self, field, check_integer(field, getattr(self, field), least))
        object.__setattr__(self, "using_znorm", check_flag("using_znorm", self.using_znorm))
        try:
            multipliers = tuple(self.channel_multipliers)
        except TypeError:
            multipliers = ()
        if not multipliers or any(not is_integer(m) or m < 1 for m in multipliers):
            raise InputError(
                f"channel_multipliers is {self.channel_multipliers!r}; expected positive integers"
            )
        object.__setattr__(self, "channel_multipliers", tuple(int(m) for m in multipliers))
        for multiplier in self.channel_multipliers:
            if self.channels * multiplier % GROUPS:
                raise InputError(
                    f"channels is {self.channels} and a channel multiplier {multiplier}; "
                    f"expected a product that {GROUPS} divides"
                )

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule(self.scales)

    @property
    def downsampling(self) -> int:
        """How many image pixels a latent pixel spans, along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """(rows, columns) of the images that the tokenizer reads and writes."""
        rows, columns = self.schedule.sizes[-1]
        return rows * self.downsampling, columns * self.downsampling

    @property
    def bytes_per_image(self) -> int:
        """An upper estimate of the memory that one more image takes in a batch.

        The widest map, of the encoder or the decoder, five copies of it, and the lookup of nine
        neighbours for each of its pixels.
        """
        rows, columns = self.image_size
        multipliers = enumerate(self.channel_multipliers)
        widest = max(m * rows * columns // 4**level for level, m in multipliers)
        return 4 * widest * self.channels * (9 + 6)
