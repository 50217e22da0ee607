"""``python -m llama4rs`` is ``llama4rs``."""

from .cli import main

if __name__ == "__main__":
    main()
