"""Entry point of the command line: ``distsgd`` and ``python -m distsgd``."""

from distsgd.cli.start import run_process as main

__all__ = ["main"]

if __name__ == "__main__":
    main()
