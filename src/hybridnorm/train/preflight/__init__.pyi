from .free import check_memory as check_memory
from .overview import preflight as preflight
