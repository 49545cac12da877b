"""`python -m edgetune` is the command line too."""

from edgetune.cli import main

if __name__ == "__main__":
    main()
