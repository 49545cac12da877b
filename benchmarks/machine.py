"""What every benchmark prints first: machine and versions."""

from edgetune.machine import machine


def heading(*libraries: str) -> str:
    """One line that names processor, cores, memory, Python and library versions."""
    facts = machine()
    versions = ", ".join(
        f"{name} {facts['libraries'][name]}" for name in libraries if name in facts["libraries"]
    )
    vnni = "INT8 dot product" if facts["vnni"] else "no INT8 dot product"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {vnni}, {facts['memory_gb']:.0f} GiB; "
        f"Python {facts['python']}, {versions}"
    )
