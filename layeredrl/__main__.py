"""The command as a module: `python -m layeredrl train pets`."""

from layeredrl.command import main

if __name__ == "__main__":
    main()
