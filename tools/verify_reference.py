#!/usr/bin/env python
"""The command ``cmae verify``, where it has been before."""
import cmae_command

cmae_command.run('verify')
