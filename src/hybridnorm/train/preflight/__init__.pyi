from .free import check_memory as check_memory
from .free import free_memory as free_memory
from .overview import preflight as preflight
