#!/usr/bin/env python
"""The command ``cmae test``, where OpenMMLab's users look for it."""
import cmae_command

cmae_command.run('test')
