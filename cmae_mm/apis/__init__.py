"""What a person asks of the package: the functions behind the commands.

``cmae_mm.pretrain``, ``cmae_mm.load_encoder`` and ``cmae_mm.embed`` are
imported from here when they are first used, so that the command ``cmae``
answers before torch is loaded. ``checks`` looks at arguments, and imports
nothing heavy. Parquet files are written by pyarrow (extra='embed').
"""
