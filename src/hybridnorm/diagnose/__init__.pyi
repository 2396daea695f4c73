from .catalogue import listing as listing
from .command import diagnose as diagnose
from .hook import probing_hooks as probing_hooks
