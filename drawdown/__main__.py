"""`python -m drawdown`: the same as the console script."""

from drawdown.cli import main

if __name__ == "__main__":
    main()
