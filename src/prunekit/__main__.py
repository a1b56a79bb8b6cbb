"""``python -m prunekit``, and with several processes ``torchrun -m prunekit``."""

from prunekit.cli import main

main()
