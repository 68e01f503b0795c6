"""Forms of the operators for an Ascend: aclnn kernels, as few as there are for each.

Its convolutions take maps channels first, (B, C, Y, X), so all maps are, and nothing is transposed
between two operators.
"""

import mindspore as ms
from mindspore import Tensor, mint, nn, ops

_matmul_nt = ops.MatMul(transpose_b=True)


class Maps(nn.Cell):
    def construct(self, x_byxc: Tensor) -> Tensor:
        return x_byxc.transpose(0, 3, 1, 2)


class Pixels(nn.Cell):
    def construct(self, x_bcyx: Tensor) -> Tensor:
        return x_bcyx.transpose(0, 2, 3, 1)


class Fork(nn.Cell):
    """x for two readers, whose gradients ``Add`` sums; MindSpore sums them by ``AddN``, of acl."""

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    def bprop(
        self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor]:
        return (dout[0] + dout[1],)


class Forks(nn.Cell):
    """x for several readers: two kernels sum their gradients, however many they are."""

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.readers = readers

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) * self.readers

    def bprop(self, x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (mint.sum(mint.stack(dout), 0),)


class Conv2d(nn.Cell):
    """Padding and bias inside the convolution, which pads both ends alike.

    For more zeros at one end, the kernel gets rows and columns of zeros at the other.
    """

    def __init__(
        self, kernel: int, stride: int, pads: tuple[int, int], upsampled: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.upsampled = kernel, stride, upsampled
        self.padding = max(pads)
        self.zeros = self.padding - pads[0], self.padding - pads[1]

    def construct(self, x_bcyx: Tensor, weight_ohwi: Tensor, bias_o: Tensor) -> Tensor:
        if self.kernel == 1:
            weight_oihw = weight_ohwi.reshape(weight_ohwi.shape[0], -1, 1, 1)
        else:
            weight_oihw = weight_ohwi.transpose(0, 3, 1, 2)
        if self.zeros != (0, 0):
            weight_oihw = mint.nn.functional.pad(weight_oihw, self.zeros + self.zeros)
        if self.upsampled:
            size = 2 * x_bcyx.shape[2], 2 * x_bcyx.shape[3]
            x_bcyx = mint.nn.functional.interpolate(x_bcyx, size=size, mode="nearest")
        return mint.nn.functional.conv2d(x_bcyx, weight_oihw, bias_o, self.stride, self.padding)


class GroupNorm(nn.Cell):
    """Group norm, and the SiLU after it."""

    def __init__(self, groups: int, silu: bool) -> None:
        super().__init__()
        self.groups, self.silu = groups, silu

    def construct(self, x_bcyx: Tensor, gain_c: Tensor, bias_c: Tensor) -> Tensor:
        y_bcyx = ops.group_norm(x_bcyx, self.groups, gain_c, bias_c, 1e-6)
        return mint.nn.functional.silu(y_bcyx) if self.silu else y_bcyx


class NearestCode(nn.Cell):
    def construct(self, vectors_nz: Tensor, codes_vz: Tensor) -> Tensor:
        # |vector|^2 is the same for every code, so it cannot change which one is nearest
        length_v = mint.sum(codes_vz * codes_vz, 1)
        distance_nv = mint.nn.functional.linear(vectors_nz, -2 * codes_vz, length_v)
        return mint.argmin(distance_nv, -1).astype(ms.int32)


class Rows(nn.Cell):
    def construct(self, table_nc: Tensor, ids: Tensor) -> Tensor:
        # not mint's embedding: that may write to its table, so all weights read later are copied
        rows_nc = mint.index_select(table_nc, 0, ids.reshape(-1))
        return rows_nc.reshape((*ids.shape, table_nc.shape[-1]))


class Parts(nn.Cell):
    def construct(self, x: Tensor, sizes: int | tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
        return mint.split(x, sizes, axis)


class TokensOfMap(nn.Cell):
    def construct(self, x_bcyx: Tensor, matrix_mn: Tensor | None) -> Tensor:
        b, c, y, x = x_bcyx.shape
        rows = x_bcyx.reshape(b * c, y * x)
        if matrix_mn is not None:
            rows = _matmul_nt(rows, matrix_mn)
        return rows.reshape(b, c, -1).transpose(0, 2, 1)


class MapOfTokens(nn.Cell):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def construct(self, x_blc: Tensor, matrix_nl: Tensor | None) -> Tensor:
        b, length, c = x_blc.shape
        rows = x_blc.transpose(0, 2, 1).reshape(b * c, length)
        if matrix_nl is not None:
            rows = _matmul_nt(rows, matrix_nl)
        return rows.reshape(b, c, self.size[0], self.size[1])


class PixelAttention(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_a=True)
        self.mix = ops.BatchMatMul(transpose_b=True)

    def construct(self, qkv_b3cyx: Tensor, scale: float) -> Tensor:
        b, three_c, y, x = qkv_b3cyx.shape
        c = three_c // 3
        q_bcn, k_bcn, v_bcn = mint.split(qkv_b3cyx.reshape(b, three_c, y * x), c, 1)
        weights_bnn = ops.softmax(self.scores(q_bcn * scale, k_bcn), -1)
        return self.mix(v_bcn, weights_bnn).reshape(b, c, y, x)


class MeanSquare(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return mint.mean(mint.square(x))
