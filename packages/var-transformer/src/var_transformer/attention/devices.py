"""The peak rates of devices, for estimates.

Peak = cores x 16 x 16 x 16 multiply-adds a cycle x clock; bandwidth = cores x bytes a cycle x
clock. Cores, clock and ``ddr_rate`` are those of CANN's platform
files (``runtime/src/platform/platform_config/Ascend910B2C.ini`` and ``Ascend910A.ini``: 24 cores
at 1.8 GHz and 32 at 1.0 GHz, ``ddr_rate`` 32); memory sizes are the products' (64 and 32 GB HBM).
"""

from dataclasses import dataclass

from var_tokenizer.common import check_choice


@dataclass(frozen=True)
class Device:
    """Limits of one device, in units per second.

    flops: of half-precision matrix products (float32 on the CPU), two per multiply-add. bandwidth:
    bytes to and from memory. launch: seconds to start an operator, as the host dispatches one
    after another. memory: bytes. itemsize: bytes of one element in the type it computes with.
    """

    name: str
    flops: float
    bandwidth: float
    launch: float
    memory: float
    itemsize: int = 2


def _ascend(name: str, cores: int, clock: float, memory: float) -> Device:
    # 10 us is the usual order of an operator's dispatch: an assumption, not a measurement
    return Device(name, cores * 2 * 16**3 * clock, cores * 32 * clock, 10e-6, memory)


DEVICES = {
    device.name: device
    for device in (
        _ascend("ascend-910b", 24, 1.8e9, 64e9),
        _ascend("ascend-910a", 32, 1.0e9, 32e9),
        # two cores with AVX-512, measured: products, an add of 22 MB arrays, a small operator
        Device("cpu", 230e9, 19e9, 20e-6, 24e9, itemsize=4),
    )
}


def device(name: str) -> Device:
    """The device of that name; raises InputError that lists the known ones."""
    check_choice("device", name, DEVICES)
    return DEVICES[name]
