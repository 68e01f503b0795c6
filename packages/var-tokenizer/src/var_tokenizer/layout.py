"""Feature maps in the layout of the device, and the operators that depend on the layout alone.

A map of C channels is (B, Y, X, C) on the CPU, and (B, C, Y, X) on an Ascend. Each function builds
the cell for this device; ``operators`` has those that compute more.
"""

from mindspore import Tensor, nn, ops

from var_tokenizer import ascend_operators as ascend
from var_tokenizer.common.kernels import on_cpu

_matmul = ops.MatMul()


def maps() -> nn.Cell:
    """``f(pixels (B,Y,X,C)) -> map``."""
    return nn.Identity() if on_cpu() else ascend.Maps()


def pixels() -> nn.Cell:
    """``f(map) -> pixels (B,Y,X,C)``."""
    return nn.Identity() if on_cpu() else ascend.Pixels()


class _Fork(nn.Cell):
    def __init__(self, readers: int) -> None:
        super().__init__()
        self.readers = readers

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) * self.readers


def fork() -> nn.Cell:
    """``f(x) -> (x, x)``, for an array that two operators read."""
    return _Fork(2) if on_cpu() else ascend.Fork()


def forks(readers: int) -> nn.Cell:
    """``f(x) -> (x, x, ...)``, for an array that so many operators read."""
    return _Fork(readers) if on_cpu() else ascend.Forks(readers)


# ---------------------------------------------------------------- tokens
def _resized(x_bnc: Tensor, matrix_mn: Tensor) -> Tensor:
    b, n, c = x_bnc.shape
    rows = x_bnc.transpose(1, 0, 2).reshape(n, b * c)
    return _matmul(matrix_mn, rows).reshape(-1, b, c).transpose(1, 0, 2)


class _TokensOfMap(nn.Cell):
    def construct(self, x_byxc: Tensor, matrix_mn: Tensor | None) -> Tensor:
        b, y, x, c = x_byxc.shape
        x_bnc = x_byxc.reshape(b, y * x, c)
        return x_bnc if matrix_mn is None else _resized(x_bnc, matrix_mn)


def tokens_of_map() -> nn.Cell:
    """``f(map of N pixels, matrix (M,N) or None) -> (B,M,C)``; None keeps the pixels as rows."""
    return _TokensOfMap() if on_cpu() else ascend.TokensOfMap()


class _MapOfTokens(nn.Cell):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def construct(self, x_blc: Tensor, matrix_nl: Tensor | None) -> Tensor:
        x_bnc = x_blc if matrix_nl is None else _resized(x_blc, matrix_nl)
        return x_bnc.reshape(x_bnc.shape[0], self.size[0], self.size[1], -1)


def map_of_tokens(size: tuple[int, int]) -> nn.Cell:
    """``f(tokens (B,L,C), matrix (Y*X,L) or None) -> map`` of Y and X in ``size``."""
    return _MapOfTokens(size) if on_cpu() else ascend.MapOfTokens(size)


# ---------------------------------------------------------------- attention
class _PixelAttention(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def construct(self, qkv_byx3c: Tensor, scale: float) -> Tensor:
        b, y, x, three_c = qkv_byx3c.shape
        c = three_c // 3
        q_bnc, k_bnc, v_bnc = ops.split(qkv_byx3c.reshape(b, y * x, three_c), c, 2)
        weights_bnn = ops.softmax(self.scores(q_bnc * scale, k_bnc), -1)
        return self.mix(weights_bnn, v_bnc).reshape(b, y, x, c)


def pixel_attention() -> nn.Cell:
    """``f(map of queries, keys and values, scale of scores) -> map``: one head among all pixels."""
    return _PixelAttention() if on_cpu() else ascend.PixelAttention()


# ---------------------------------------------------------------- rows, parts and losses
class _Rows(nn.Cell):
    def construct(self, table_nc: Tensor, ids: Tensor) -> Tensor:
        return ops.gather(table_nc, ids, 0)


def rows_at() -> nn.Cell:
    """``f(table (N,C), ids (...)) -> (...,C)``: codes, or other rows of a table."""
    return _Rows() if on_cpu() else ascend.Rows()


class _Parts(nn.Cell):
    def construct(self, x: Tensor, sizes: int | tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
        return ops.split(x, sizes, axis)  # MindSpore 2.7 has no kernel for mint.split on a CPU


def parts() -> nn.Cell:
    """``f(x, sizes, axis)``: its parts, one after another, of one size or of several.

    On an Ascend they are views.
    """
    return _Parts() if on_cpu() else ascend.Parts()


class _MeanSquare(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        # by rows: MindSpore adds up a large array in as many parts as were fastest in a trial
        return (x * x).mean(-1).mean()


def mean_square() -> nn.Cell:
    """``f(x) -> ()``: the mean of the squares."""
    return _MeanSquare() if on_cpu() else ascend.MeanSquare()
