from .hook import probing_hooks as probing_hooks
