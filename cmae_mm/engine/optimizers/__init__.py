from .auto_amp_optim_wrapper import AutoAmpOptimWrapper
from .grouped_optim_wrapper_constructor import GroupedOptimWrapperConstructor

__all__ = ['AutoAmpOptimWrapper', 'GroupedOptimWrapperConstructor']
