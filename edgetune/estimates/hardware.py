"""A profile's mode as the hardware that the time of a kernel depends on. It may import hardware and estimates.model."""

from edgetune.estimates.model import Hardware
from edgetune.hardware import Mode, Profile

# Of L2, where a profile says nothing: the least that a Jetson has, in MiB.
LEAST_L2_MB = 0.25
# Compute capability from which there are tensor cores, and from which those of Ampere; later ones count as Ampere.
TENSOR_CORES, AMPERE = (7, 0), (8, 0)


def architecture(profile: Profile) -> str:
    """Return which set of parameters a chip takes."""
    capability = tuple(int(part) for part in profile.compute_capability.split("."))
    if capability < TENSOR_CORES:
        return "cuda"
    return "ampere" if capability >= AMPERE else "volta"


def hardware_of(profile: Profile, mode: str) -> Hardware | None:
    """Return what decides about time; None where the profile does not state it."""
    figures: Mode = profile.modes[mode]
    if not (
        profile.compute_capability
        and figures.gpu_mhz
        and figures.bandwidth_gb_s
        and figures.fp16_dense_tflops
    ):
        return None
    return Hardware(
        architecture=architecture(profile),
        mhz=figures.gpu_mhz,
        bandwidth=figures.bandwidth_gb_s * 1e9,
        int8=(figures.int8_dense_tops or 0.0) * 1e12 if profile.int8 else 0.0,
        fp16=figures.fp16_dense_tflops * 1e12,
        l2=(profile.l2_mb or LEAST_L2_MB) * 2**20,
    )
