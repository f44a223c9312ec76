"""`python -m brim`: the front door where the package is not installed."""

from brim.cli import main

if __name__ == "__main__":
    main()
