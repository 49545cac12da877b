"""`python -m edgetune` is the command line too; torchrun starts it several times, for one training."""

from edgetune.cli import main
from edgetune.training.ranks import launched, lead_or_follow

if __name__ == "__main__":
    lead_or_follow(main) if launched() else main()
