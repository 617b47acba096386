"""``python -m cmae_mm`` is the command ``cmae``."""
from .cli.main import main

main()
