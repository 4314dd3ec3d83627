"""`python -m client`, as `script/batch` runs it."""

from client.commands import main

if __name__ == "__main__":
    main()
