"""The published rows as the fit takes them: networks exported once into a folder, kernels, hardware."""

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from estimate_networks import export

from edgetune.estimates.fitting import Row
from edgetune.estimates.fusing import kernels_of
from edgetune.estimates.hardware import hardware_of
from edgetune.estimates.kernels import Kernel
from edgetune.estimates.model import columns, sizes_of
from edgetune.estimates.network import read_network
from edgetune.estimates.parameters import PUBLISHED
from edgetune.profile import load_target

load_target = cache(load_target)


def published() -> list[dict[str, str]]:
    """Return the rows that are used."""
    with PUBLISHED.open(newline="") as file:
        return [row for row in csv.DictReader(file) if not row["left_out"]]


def rows(folder: Path, plain: bool = False) -> list[Row]:
    """Return all rows that are used; `plain`: with all bytes and operations, no cache, no padded channels."""

    @cache
    def kernels(name: str, batch: int) -> tuple[Kernel, ...]:
        return kernels_of(read_network(export(name, folder, batch)))

    found = []
    for row in published():
        target = load_target(row["target"])
        hardware = hardware_of(target.profile, target.mode)
        assert hardware is not None, row["target"]
        network = kernels(row["network"], int(row["batch"]))
        sizes = sizes_of(network, row["precision"])
        if plain:
            hardware = replace(hardware, l2=0.0)
            sizes = replace(sizes, operations=np.array([float(kernel.operations) for kernel in network]))
        found.append(
            Row(columns(sizes, hardware), row["target"], row["network"], row["measured"], float(row["value"]))
        )
    return found
