"""`python -m drawdown`: the same as the console script."""

from drawdown.command_line.app import main

if __name__ == "__main__":
    main()
