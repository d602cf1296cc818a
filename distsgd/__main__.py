"""Entry point of the command line: ``distsgd`` and ``python -m distsgd``."""

from distsgd.cli.streams import open_missing_streams

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    open_missing_streams()
    from distsgd.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
