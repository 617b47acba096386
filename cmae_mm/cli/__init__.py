"""The command ``cmae``: what a person types, one file a subject.

Nothing heavy is imported before a command line has been understood: modules
here import torch and the libraries inside of functions.
"""
