"""The codebook: how it starts, follows the data, and keeps all of its codes in use (revival).

All of it works on NumPy arrays between the steps. What workers must agree on is summed over them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from mindspore import Tensor, ops
from scipy.sparse import csr_matrix
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, check_choice, check_integer, check_number

from var_train.parallel import workers

log = logging.getLogger(__name__)

Start = Literal["kmeans", "data", "random"]
Update = Literal["ema", "gradient"]


@dataclass(frozen=True)
class CodebookConfig:
    """How the codebook is trained."""

    start: Start = "data"
    """The first codes: centres of clusters of the encoder's vectors of the first batch, such
    vectors themselves, or random numbers."""
    update: Update = "gradient"
    """How codes follow the vectors they stand for: by moving averages (arXiv:1711.00937,
    appendix A) or by the gradient of the quantization loss."""
    ema_decay: float = 0.99
    """Decay of the moving averages at each step."""
    commitment: float = 0.25
    """Weight of the loss that draws the encoder's output to the codes (VQ-VAE's beta)."""
    revive_every: int = 20
    """Steps between revivals, 0 for never. A revival places the codes that no image has used since
    the last one on vectors of the current batch. A scale that uses fewer codes than its even share
    gets these first and, if they are too few, the least used codes as well. No code is revived in
    the last quarter of the steps."""
    scale_dropout: float = 0.0
    """Share of the images that are reconstructed from their first scales alone, a random number of
    them, so that every prefix decodes well."""

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        check_choice("start", self.start, get_args(Start))
        check_choice("update", self.update, get_args(Update))
        check_number("ema_decay", self.ema_decay, least=0, below=1)
        check_number("commitment", self.commitment, least=0)
        check_integer("revive_every", self.revive_every, 0)
        check_number("scale_dropout", self.scale_dropout, least=0, most=1)


class CodebookKeeper:
    """Places, moves, revives and watches the codes of a tokenizer in training.

    Raises InputError if a batch (of ``batch`` images, over all workers) has fewer vectors than
    the codebook has codes: several codes would start from one vector.
    """

    def __init__(self, tokenizer: Tokenizer, config: CodebookConfig, batch: int) -> None:
        vectors = batch * tokenizer.schedule.length
        if config.start != "random" and vectors < tokenizer.vocab_size:
            raise InputError(
                f"vocab_size is {tokenizer.vocab_size}; a batch of {batch} images has {vectors} "
                f"vectors to start codes from: expected at most {vectors}, or a larger batch"
            )
        self._tokenizer, self._config = tokenizer, config
        v, z = tokenizer.vocab_size, tokenizer.latent_channels
        # Every scale has the same weight, as in the loss of the gradient update: otherwise the fine
        # scales, which have nearly all tokens, would draw the codes away from the coarse ones.
        tokens_k = np.array(tokenizer.schedule.tokens)
        weight_k = tokenizer.schedule.length / (len(tokens_k) * tokens_k)
        self._weight_l = np.repeat(weight_k, tokens_k).astype(np.float32)
        # vectors of each scale: of the whole batch, and before those of this worker's images
        self._vectors_k = batch * tokens_k
        self._begin_k = workers.shares(batch)[0].images.start * tokens_k
        self._hits_sv = np.zeros((len(tokens_k), v), np.float32)  # since the last revival
        self._count_v = np.ones(v, np.float32)
        self._sum_vz = np.zeros((v, z), np.float32)
        self._collapsed: set[int] = set()

    # ------------------------------------------------------------ start
    def start(self, images_bcyx: np.ndarray, rng: np.random.Generator) -> None:
        """Places all codes. images_bcyx: (B, 3, Y, X), the first batch of this worker."""
        everything = np.arange(self._tokenizer.vocab_size)
        if self._config.start != "random":
            scales = self._residuals(images_bcyx)
            share_k = np.minimum(len(everything) // len(scales), self._vectors_k)
            share_k[-1] += len(everything) - share_k.sum()
            self._place(everything, share_k, scales, rng)
        if self._config.start == "kmeans":
            self._set(everything, self._centres(self._residuals(images_bcyx), rng))

    def _centres(self, scales: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """(V, z): centres of clusters of vectors that are drawn evenly from the scales."""
        from sklearn.cluster import MiniBatchKMeans  # not before it is needed: it takes a second

        v = self._tokenizer.vocab_size
        share = -(-8 * v // len(scales))
        indices = [rng.integers(count, size=share) for count in self._vectors_k]
        drawn = taken(scales, indices, self._begin_k)
        means = MiniBatchKMeans(
            v, init="random", n_init=1, batch_size=4 * v, random_state=int(rng.integers(2**31))
        ).fit(drawn)
        # from one worker: sums of several threads may differ in the last bit
        return workers.broadcast(means.cluster_centers_.astype(np.float32), 0)

    def _residuals(self, images_bcyx: np.ndarray) -> list[np.ndarray]:
        z = self._tokenizer.latent_channels
        return [v.reshape(-1, z) for v in self._tokenizer.residual_vectors(images_bcyx)]

    # ------------------------------------------------------------ every step
    def follow(
        self,
        step: int,
        steps: int,
        ids_bl: np.ndarray,
        vectors_blz: np.ndarray,
        kept_kb: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, list[float] | float]:
        """Moves and revives codes after a step; returns usage and perplexity of each scale.

        step: 0-based, of the steps that changed the weights. ids_bl, vectors_blz: the tokens
        (B, L) of all scales and the vectors (B, L, z) that they stand for. kept_kb: (K, B), 0
        where a scale was dropped: its tokens do not count.
        """
        split = self._tokenizer.schedule.split
        token_kept_bl = np.repeat(kept_kb.T, self._tokenizer.schedule.tokens, axis=1) > 0
        hits_sv = count_hits(split(ids_bl), self._tokenizer.vocab_size, split(token_kept_bl))
        hits_sv = workers.all_reduce_sum(hits_sv)
        self._hits_sv += hits_sv
        usage = self._tokenizer.quantize.ema_vocab_hit_SV
        usage_sv = smooth(usage.asnumpy(), hits_sv, step)
        # not set_data, after which compiled graphs would keep the old data
        ops.assign(usage, Tensor(usage_sv))
        if self._config.update == "ema":
            weight_bl = token_kept_bl * self._weight_l
            self._average(ids_bl.ravel(), vectors_blz.reshape(ids_bl.size, -1), weight_bl.ravel())
        revived = 0
        every = self._config.revive_every
        if every and (step + 1) % every == 0 and step < 0.75 * steps:
            revived = self._revive(split(vectors_blz), rng)
            self._hits_sv[:] = 0
        perplexity = perplexities(usage_sv)
        self._watch(step, usage_sv, perplexity)
        return {"perplexity": perplexity, "revived": revived}

    def _average(self, ids_n: np.ndarray, vectors_nz: np.ndarray, weight_n: np.ndarray) -> None:
        n, v = len(ids_n), self._tokenizer.vocab_size
        chosen = csr_matrix((weight_n, (ids_n, np.arange(n))), shape=(v, n))
        both = np.concatenate((chosen @ vectors_nz, chosen.sum(1)), 1).astype(np.float32)
        both = workers.all_reduce_sum(both)
        decay = np.float32(self._config.ema_decay)
        self._sum_vz = decay * self._sum_vz + (1 - decay) * both[:, :-1]
        self._count_v = decay * self._count_v + (1 - decay) * both[:, -1]
        alive_v = self._count_v > 1e-3  # a code that no token uses stays where it is
        self._assign(alive_v, self._sum_vz[alive_v] / self._count_v[alive_v, None])

    def _revive(self, scales: Sequence[np.ndarray], rng: np.random.Generator) -> int:
        """Revives dead codes on vectors of this batch, (B, l, z) per scale; returns how many."""
        hits_sv, scale_count = self._hits_sv, len(self._hits_sv)
        missing_k = np.maximum(hits_sv.shape[1] // scale_count - (hits_sv > 0).sum(1), 0)
        wanted_k = np.minimum(missing_k, self._vectors_k)
        use_v = (hits_sv / np.maximum(hits_sv.sum(1, keepdims=True), 1)).sum(0)
        count = max(int((use_v == 0).sum()), int(wanted_k.sum()))
        rest = rng.integers(scale_count, size=count - int(wanted_k.sum()))
        wanted_k = wanted_k + np.bincount(rest, minlength=scale_count)
        self._place(np.argsort(use_v, kind="stable")[:count], wanted_k, scales, rng)
        return count

    def _place(
        self,
        codes_n: np.ndarray,
        share_k: np.ndarray,
        scales: Sequence[np.ndarray],
        rng: np.random.Generator,
    ) -> None:
        """Places the codes ``codes_n`` on vectors of this batch, ``share_k`` of them on scale k's.

        Vectors are drawn from the whole batch, so the codes do not depend on the number of
        workers; one is taken twice only if a scale has too few.
        """
        if not len(codes_n):
            return
        flat = [vectors.reshape(-1, self._tokenizer.latent_channels) for vectors in scales]
        indices = [
            np.resize(rng.permutation(count), share)
            for count, share in zip(self._vectors_k, share_k, strict=True)
        ]
        self._set(codes_n, taken(flat, indices, self._begin_k))

    def _set(self, chosen: np.ndarray, codes_nz: np.ndarray) -> None:
        """Moves codes to new places and restarts their averages there."""
        self._count_v[chosen] = 1.0
        self._sum_vz[chosen] = codes_nz
        self._assign(chosen, codes_nz)

    def _assign(self, chosen: np.ndarray, codes_nz: np.ndarray) -> None:
        codebook = self._tokenizer.quantize.embedding.weight
        codes_vz = codebook.asnumpy().copy()
        codes_vz[chosen] = codes_nz
        ops.assign(codebook, Tensor(codes_vz))

    def _watch(self, step: int, usage_sv: np.ndarray, perplexity: list[float]) -> None:
        """Warns of a scale whose perplexity is below a twentieth of what it could be."""
        if step < 200:  # even a healthy codebook is still spreading over its coarse scales
            return
        for k, (rows, columns) in enumerate(self._tokenizer.schedule.sizes):
            # the running usage remembers about 100 steps
            possible = min(self._tokenizer.vocab_size, 100 * float(usage_sv[k].sum()))
            collapsed = perplexity[k] < max(1.5, 0.05 * possible)
            if collapsed and k not in self._collapsed:
                log.warning(
                    "step %d: scale %dx%d has collapsed: perplexity %.1f of at most %.0f codes",
                    *(step, rows, columns, perplexity[k], possible),
                )
            (self._collapsed.add if collapsed else self._collapsed.discard)(k)

    # ------------------------------------------------------------ resumption
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that later steps depend on, besides the tokenizer's own parameters."""
        return {"hits": self._hits_sv, "count": self._count_v, "sum": self._sum_vz}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self._hits_sv[:] = arrays["hits"]
        self._count_v[:] = arrays["count"]
        self._sum_vz[:] = arrays["sum"]


def taken(
    scales: Sequence[np.ndarray], indices: Sequence[np.ndarray], begin_k: np.ndarray
) -> np.ndarray:
    """(N, z): the rows ``indices`` of each scale, one scale after another.

    scales: K arrays (n, z) float32, of this worker's images. indices: K arrays, the same on every
    worker; they count the rows of the whole batch. begin_k: (K,), the first row of this worker.
    """
    rows = []
    for vectors_nz, index_m, begin in zip(scales, indices, begin_k, strict=True):
        row_m = index_m - begin
        own_m1 = ((row_m >= 0) & (row_m < len(vectors_nz)))[:, None]
        rows.append(np.where(own_m1, vectors_nz[row_m % len(vectors_nz)], np.float32(0)))
    return workers.all_reduce_sum(np.concatenate(rows))


def count_hits(
    ids: Sequence[np.ndarray], vocab_size: int, kept: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """(K, V) float32: how often each scale chose each code.

    ids: K integer arrays. kept: K boolean arrays like them; a token counts where True.
    """
    kept = [np.ones(i.shape, bool) for i in ids] if kept is None else kept
    counts = [np.bincount(i[t], minlength=vocab_size) for i, t in zip(ids, kept, strict=True)]
    return np.stack(counts).astype(np.float32)


def perplexities(hits_sv: np.ndarray) -> list[float]:
    """exp of the entropy of each row: how many codes, used evenly, would give it. 0 for none."""
    totals = np.maximum(hits_sv.sum(1, keepdims=True), 1e-12)
    shares = hits_sv / totals
    entropies = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)
    return [float(p) for p in np.where(hits_sv.any(1), np.exp(entropies), 0)]


def smooth(usage_sv: np.ndarray, hits_sv: np.ndarray, step: int) -> np.ndarray:
    """The running usage as in published checkpoints: its average is slower after 100 steps."""
    keep = 0.0 if step == 0 else 0.9 if step < 100 else 0.99
    return keep * usage_sv + np.float32(1 - keep) * hits_sv
