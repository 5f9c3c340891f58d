"""`make chaos`. This module imports nothing, because the killed processes would import it as well."""

if __name__ == "__main__":
    from tests.chaos.suite import main

    main()
