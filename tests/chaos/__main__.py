"""`make chaos`. Nothing is imported here that the killed processes would import with it."""

if __name__ == "__main__":
    from tests.chaos.suite import main

    main()
